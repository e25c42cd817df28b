# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Top-k, top-p and min-p without a sort.

1. `survey_kernel`: each row's total mass, and how many tokens and how much mass lie within 16 distances of its best.
2. `collect_kernel`: tokens within the shortest distance that holds all that may be kept go to a short list in the
   order of their ids. How many each chunk holds is known, so every program knows where its own belong.
3. `draw_kernel`: one program per row searches the list for the threshold by bisection of the ordered bits of the
   scores, which is exact, then draws. A row whose list would be too long is searched itself.

Masses are integers in units of 2**-38 of the best token's, so their sums, and so the tokens, do not depend on how
the work was split. Tokens that equal the threshold are kept in the order of their ids, as a stable sort would.
"""

import triton
import triton.language as tl

from kernels import pdl
from kernels.sampling.scores import (
    best_key,
    float_key,
    gumbel,
    is_filtered,
    key_float,
    pack,
    packed_score,
    packed_token,
)

_UNIT = tl.constexpr(2.0**38)
_ALL = tl.constexpr(2**62)


@triton.jit
def _distance(pivots):
    """Distances from the best score, 0.5 to 24: denser where the mass is."""
    steps = pivots.to(tl.float32) + 1.0
    return steps * 0.45 + steps * steps * 0.066


@triton.jit
def _mass(x, best):
    """exp(x - best) in units, int64."""
    return (tl.exp(x - best) * _UNIT).to(tl.int64)


@triton.jit
def _parameters(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab):
    """(temperature, top_k or 0, top_p, min_p, whether the row is drawn from a filtered distribution)."""
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_k = tl.where(top_k < vocab, top_k, 0)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    applies = (temperature != 0.0) & is_filtered(top_k, top_p, min_p, vocab)
    return temperature, top_k, top_p, min_p, applies


@triton.jit
def survey_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    keys_ptr,
    counts_ptr,
    masses_ptr,
    totals_ptr,
    row_stride,
    vocab,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    PIVOTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Per chunk: counts int32 and masses float32 [n, chunks, PIVOTS], totals int64 [n, chunks]."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    num_chunks = tl.num_programs(1)
    pdl.wait(PDL)
    temperature, _, _, _, applies = _parameters(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab)
    if applies:
        best = packed_score(best_key(keys_ptr, row, num_chunks, CHUNKS))
        pivots = tl.arange(0, PIVOTS)
        distances = _distance(pivots)[:, None]
        counts = tl.zeros((PIVOTS,), tl.int32)
        masses = tl.zeros((PIVOTS,), tl.float32)
        total = tl.full((), 0, tl.int64)
        for start in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, vocab), BLOCK):
            tokens = start + tl.arange(0, BLOCK)
            x = tl.load(logits_ptr + row * row_stride + tokens, mask=tokens < vocab, other=float("-inf"))
            x = tl.div_rn(x.to(tl.float32), temperature)
            total += tl.sum(_mass(x, best), axis=0)
            near = (best - x)[None, :] <= distances
            counts += tl.sum(near.to(tl.int32), axis=1)
            masses += tl.sum(tl.where(near, tl.exp(x - best)[None, :], 0.0), axis=1)
        at = (row * num_chunks + chunk) * PIVOTS + pivots
        tl.store(counts_ptr + at, counts)
        tl.store(masses_ptr + at, masses)
        tl.store(totals_ptr + row * num_chunks + chunk, total)


@triton.jit
def _list_plan(
    counts_ptr,
    masses_ptr,
    totals_ptr,
    row,
    chunk,
    num_chunks,
    top_k,
    top_p,
    min_p,
    CHUNKS: tl.constexpr,
    PIVOTS: tl.constexpr,
    CAPACITY: tl.constexpr,
):
    """What the surveys of a row's chunks say of its list.

    Returns (distance from the best within which it holds tokens, its length or -1 for no list, tokens of earlier
    chunks in it, the row's whole mass).
    """
    chunks = tl.arange(0, CHUNKS)
    pivots = tl.arange(0, PIVOTS)
    is_chunk = chunks < num_chunks
    at = (row * num_chunks + chunks[:, None]) * PIVOTS + pivots[None, :]
    counts = tl.load(counts_ptr + at, mask=is_chunk[:, None], other=0)
    masses = tl.load(masses_ptr + at, mask=is_chunk[:, None], other=0.0)
    total = tl.sum(tl.load(totals_ptr + row * num_chunks + chunks, mask=is_chunk, other=0), axis=0)
    lengths = tl.sum(counts, axis=0)
    # These masses are rounded, so ask for a little more than top_p.
    needed = (top_p + tl.maximum((1.0 - top_p) * 0.05, 1e-5)) * (total.to(tl.float32) / _UNIT)
    # Top-p is a share of what top-k keeps, so with both the list must hold all of that.
    enough = lengths >= top_k
    if top_k == 0:
        if top_p < 1.0:
            enough = tl.sum(masses, axis=0) >= needed
        else:
            enough = tl.exp(-_distance(pivots)) < min_p * 0.99
    pivot = tl.min(tl.where(enough, pivots, PIVOTS), axis=0)
    length = tl.sum(tl.where(pivots == pivot, lengths, 0), axis=0)
    length = tl.where((pivot < PIVOTS) & (length <= CAPACITY), length, -1)
    earlier = (chunks < chunk)[:, None] & (pivots == pivot)[None, :]
    before = tl.sum(tl.sum(tl.where(earlier, counts, 0), axis=1), axis=0)
    return _distance(pivot), length, before, total


@triton.jit
def collect_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    keys_ptr,
    counts_ptr,
    masses_ptr,
    totals_ptr,
    list_scores_ptr,
    list_tokens_ptr,
    row_stride,
    vocab,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    PIVOTS: tl.constexpr,
    CAPACITY: tl.constexpr,
    PDL: tl.constexpr,
):
    """A chunk's part of the lists: scores float32 and tokens int32 [n, CAPACITY]."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    num_chunks = tl.num_programs(1)
    pdl.wait(PDL)
    temperature, top_k, top_p, min_p, applies = _parameters(
        temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab
    )
    if applies:
        best = packed_score(best_key(keys_ptr, row, num_chunks, CHUNKS))
        distance, length, entry, _ = _list_plan(
            counts_ptr, masses_ptr, totals_ptr, row, chunk, num_chunks, top_k, top_p, min_p,
            CHUNKS, PIVOTS, CAPACITY,
        )  # fmt: skip
        if length >= 0:
            for start in range(chunk * CHUNK, min(chunk * CHUNK + CHUNK, vocab), BLOCK):
                tokens = start + tl.arange(0, BLOCK)
                x = tl.load(logits_ptr + row * row_stride + tokens, mask=tokens < vocab, other=float("-inf"))
                x = tl.div_rn(x.to(tl.float32), temperature)
                near = best - x <= distance
                ranks = tl.cumsum(near.to(tl.int32), axis=0)
                at = row * CAPACITY + entry + ranks - 1
                tl.store(list_scores_ptr + at, x, mask=near)
                tl.store(list_tokens_ptr + at, tokens, mask=near)
                entry += tl.max(ranks, axis=0)


@triton.jit
def _entries(candidates, start, BLOCK: tl.constexpr):
    """Scores, -inf past the end, and tokens: of the list, or of the row itself if the list's length is negative."""
    scores_ptr, tokens_ptr, row_ptr, temperature, _, length, vocab = candidates
    entries = start + tl.arange(0, BLOCK)
    from_list = length >= 0
    in_list = from_list & (entries < length)
    in_row = (entries < vocab) & (from_list == 0)
    listed = tl.load(scores_ptr + entries, mask=in_list, other=float("-inf"))
    tokens = tl.load(tokens_ptr + entries, mask=in_list, other=0)
    raw = tl.load(row_ptr + entries, mask=in_row, other=float("-inf")).to(tl.float32)
    x = tl.where(from_list, listed, tl.div_rn(raw, temperature))
    return x, tl.where(from_list, tokens, entries)


@triton.jit
def _num_entries(candidates):
    _, _, _, _, _, length, vocab = candidates
    return tl.where(length >= 0, length, vocab)


@triton.jit
def _amount(inside, x, best, BY_MASS: tl.constexpr):
    """Each entry's part of a mass, or of a count, int64."""
    if BY_MASS:
        return tl.where(inside, _mass(x, best), 0)
    else:
        return inside.to(tl.int64)


@triton.jit
def _amount_above(candidates, threshold, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """Mass or count of the scores above a threshold."""
    best = candidates[4]
    amounts = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, _num_entries(candidates), BLOCK):
        x, _ = _entries(candidates, start, BLOCK)
        amounts += _amount(x > threshold, x, best, BY_MASS)
    return tl.sum(amounts, axis=0)


@triton.jit
def _search(candidates, wanted, low, BY_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """Key of the highest threshold which scores of at least the wanted mass, or count, reach; `low` if none does.

    Bisection over keys, where each bound moves on to the next score there is.
    """
    best = candidates[4]
    high = float_key(best).to(tl.int64)
    while low < high:
        middle = (low + high + 1) >> 1
        threshold = key_float(middle.to(tl.int32))
        amounts = tl.zeros((BLOCK,), tl.int64)
        above = tl.full((BLOCK,), float("inf"), tl.float32)
        below = tl.full((BLOCK,), float("-inf"), tl.float32)
        for start in range(0, _num_entries(candidates), BLOCK):
            x, _ = _entries(candidates, start, BLOCK)
            inside = x >= threshold
            amounts += _amount(inside, x, best, BY_MASS)
            above = tl.minimum(above, tl.where(inside, x, float("inf")))
            below = tl.maximum(below, tl.where(inside, float("-inf"), x))
        if tl.sum(amounts, axis=0) >= wanted:
            low = float_key(tl.min(above, axis=0)).to(tl.int64)
        else:
            high = float_key(tl.max(below, axis=0)).to(tl.int64)
    return low


@triton.jit
def _share(total, top_p):
    """top_p of a mass, rounded down, at least 1."""
    share = (top_p * 16777216.0).to(tl.int64)
    exact = (total >> 24) * share + (((total & 0xFFFFFF) * share) >> 24)
    return tl.maximum(exact, 1)


@triton.jit
def _threshold(candidates, top_k, top_p, total, BLOCK: tl.constexpr):
    """What top-k and top-p keep: scores above the threshold, and so many of those that equal it."""
    best = candidates[4]
    threshold = tl.full((), float("-inf"), tl.float32)
    low = float_key(threshold).to(tl.int64)
    ties = tl.full((), _ALL, tl.int64)
    if top_k > 0:
        low = _search(candidates, top_k, low, False, BLOCK)
        threshold = key_float(low.to(tl.int32))
        ties = top_k - _amount_above(candidates, threshold, False, BLOCK)
        total = _amount_above(candidates, threshold, True, BLOCK) + ties * _mass(threshold, best)
    if top_p < 1.0:
        wanted = _share(total, top_p)
        lowest = low
        low = _search(candidates, wanted, low, True, BLOCK)
        threshold = key_float(low.to(tl.int32))
        missing = wanted - _amount_above(candidates, threshold, True, BLOCK)
        each = tl.maximum(_mass(threshold, best), 1)
        needed = (missing + each - 1) // each
        # At top-k's own threshold both limits hold.
        ties = tl.where(low == lowest, tl.minimum(ties, needed), needed)
    return threshold, ties


@triton.jit
def _draw(candidates, threshold, ties, min_p, seed, position, BLOCK: tl.constexpr):
    """Key of the kept token whose score with noise is highest."""
    best = candidates[4]
    best_noisy = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_token = tl.arange(0, BLOCK)
    equal_before = tl.full((), 0, tl.int64)
    for start in range(0, _num_entries(candidates), BLOCK):
        x, tokens = _entries(candidates, start, BLOCK)
        equal = (x == threshold).to(tl.int32)
        ranks = tl.cumsum(equal, axis=0)
        kept = (x > threshold) | ((equal != 0) & (equal_before + ranks - 1 < ties))
        kept = kept & (tl.exp(x - best) >= min_p)
        equal_before += tl.max(ranks, axis=0)
        if tl.max(kept.to(tl.int32), axis=0) > 0:
            noisy = tl.where(kept, x + gumbel(seed, position, tokens), float("-inf"))
            better = noisy > best_noisy
            best_noisy = tl.where(better, noisy, best_noisy)
            best_token = tl.where(better, tokens, best_token)
    return tl.max(pack(best_noisy, best_token), axis=0)


@triton.jit
def draw_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    keys_ptr,
    counts_ptr,
    masses_ptr,
    totals_ptr,
    list_scores_ptr,
    list_tokens_ptr,
    out_ptr,
    row_stride,
    vocab,
    num_chunks,
    CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
    PIVOTS: tl.constexpr,
    CAPACITY: tl.constexpr,
    PDL: tl.constexpr,
):
    """Each row's token, int64 [n]."""
    row = tl.program_id(0).to(tl.int64)
    pdl.wait(PDL)
    temperature, top_k, top_p, min_p, applies = _parameters(
        temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab
    )
    key = best_key(keys_ptr, row, num_chunks, CHUNKS)
    if applies:
        best = packed_score(key)
        _, length, _, total = _list_plan(
            counts_ptr, masses_ptr, totals_ptr, row, 0, num_chunks, top_k, top_p, min_p,
            CHUNKS, PIVOTS, CAPACITY,
        )  # fmt: skip
        candidates = (
            list_scores_ptr + row * CAPACITY, list_tokens_ptr + row * CAPACITY,
            logits_ptr + row * row_stride, temperature, best, length, vocab,
        )  # fmt: skip
        threshold, ties = _threshold(candidates, top_k, top_p, total, BLOCK)
        seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
        key = _draw(candidates, threshold, ties, min_p, seed, position, BLOCK)
    tl.store(out_ptr + row, packed_token(key))
