# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# ruff: noqa: RUF005
# (Triton's tuples grow by concatenation alone.)
"""Top-p and min-p without knowing where they cut: a draw is tested, not the threshold searched.

What top-p keeps begins with the likeliest token and ends where the mass reaches its share. The best of the kept
tokens with noise is found in rounds of two passes over those rows that are undecided:

1. `survey_kernel`: the mass of the tokens above some scores, and before the token drawn last. So this one is proved to
   be inside, and is the result, or outside.
2. `draw_kernel`: the best with noise of the tokens before the `limit`: at it and after it all are proved to be
   outside. A token above the `high` score is inside: the survey proved that too.

A draw may fall between the two, and then inside or outside; the next survey divides what is between. Masses are
integers in units of 2**-38 of the best token's, added up from spans whose tokens are always the same, so nothing
depends on how the work was split. Rows that are undecided after the last round go on in `finish_kernel`.

Each launch reads which rows are decided from the one before and writes it for the next: where a launch read what it
writes, the warps of one program could see different answers and part.
"""

import triton
import triton.language as tl

from kernels import pdl
from kernels.sampling.noise import gumbel_tile
from kernels.sampling.scores import (
    UNDECIDED,
    best_key,
    best_of_tile,
    load_tile,
    pack,
    packed_score,
    packed_token,
    parameters,
    scaled,
)

UNIT = tl.constexpr(2.0**38)
_LOG2_E = tl.constexpr(1.4426950408889634)
ALL = tl.constexpr(2**62)
"""A share of the mass that no row has: everything is inside."""
_REACH = tl.constexpr(12.0)
"""How far below the highest open score a survey looks at most."""


@triton.jit
def lowest_limit():
    """The key that every token comes before, unless it is forbidden."""
    return pack(tl.full((), float("-inf"), tl.float32), tl.full((), 0, tl.int64))


@triton.jit
def _before(x, tokens, limit):
    """Which scores and tokens come before a key: above it, or equal and of a lower id."""
    score, token = packed_score(limit), packed_token(limit).to(tl.int32)
    return (x > score) | ((x == score) & (tokens < token))


@triton.jit
def relative_mass(x, best):
    """float32 exp(x - best), 1 for the best."""
    return tl.exp2(tl.fma(x, _LOG2_E, -best * _LOG2_E))


@triton.jit
def lowest_score(best, min_p):
    """What min-p keeps at least."""
    return tl.where(min_p > 0.0, best + tl.log(tl.maximum(min_p, 2.0**-126)), float("-inf"))


@triton.jit
def span_mass(inside, masses):
    """Mass of a tile's spans, int64 [SPANS] in units. More tokens inside never have less, whatever is rounded."""
    return (tl.sum(tl.where(inside, masses, 0.0), axis=1) * UNIT).to(tl.int64)


@triton.jit
def share_of(total, top_p):
    """top_p of a mass, rounded down, at least 1; ALL where top-p keeps everything."""
    share = (top_p * 16777216.0).to(tl.int64)
    exact = (total >> 24) * share + (((total & 0xFFFFFF) * share) >> 24)
    return tl.where(top_p < 1.0, tl.maximum(exact, 1), ALL)


@triton.jit
def _pivot(low, high, index, PIVOTS: tl.constexpr, FIRST: tl.constexpr):
    """Scores in an open interval; in the first round denser towards its upper end, where a row's mass is."""
    part = (index + 1.0) / (PIVOTS + 1.0)
    if FIRST:
        part = part * part
    return high - (high - tl.maximum(low, high - _REACH)) * part


@triton.jit
def drawn_key(row_ptr, keys_ptr, row, num_chunks, scale, CHUNKS: tl.constexpr):
    """Key, without noise, of the token that a round drew; keys [n, chunks]."""
    token = packed_token(best_key(keys_ptr, row, num_chunks, CHUNKS))
    return pack(scaled(tl.load(row_ptr + token), scale), token)


@triton.jit
def _measure(
    row_ptr, from_token, to_token, vocab, scale, best, pivots, drawn,
    SPANS: tl.constexpr, WIDTH: tl.constexpr, PIVOTS: tl.constexpr, OF_ALL: tl.constexpr,
):  # fmt: skip
    """Masses of some tokens above each of a tuple of pivots, and last of those before the key `drawn`, int64 each.

    OF_ALL: last of all that are not forbidden.
    """
    sums = ()
    for _ in tl.static_range(PIVOTS + 1):
        sums = sums + (tl.zeros((SPANS,), tl.int64),)
    for start in range(from_token, to_token, SPANS * WIDTH):
        logits, tokens = load_tile(row_ptr, start, vocab, SPANS, WIDTH)
        x = scaled(logits, scale)
        masses = relative_mass(x, best)
        is_before = (x > float("-inf")) if OF_ALL else _before(x, tokens, drawn)
        added = ()
        for index in tl.static_range(PIVOTS):
            added = added + (sums[index] + span_mass(x > pivots[index], masses),)
        sums = added + (sums[PIVOTS] + span_mass(is_before, masses),)
    totals = ()
    for index in tl.static_range(PIVOTS + 1):
        totals = totals + (tl.sum(sums[index], axis=0),)
    return totals


@triton.jit
def mass_before(row_ptr, vocab, scale, best, key, SPANS: tl.constexpr, WIDTH: tl.constexpr):
    """Mass of the tokens of a row that come before a key, int64."""
    masses = _measure(row_ptr, 0, vocab, vocab, scale, best, (), key, SPANS, WIDTH, 0, False)
    return masses[0]


@triton.jit
def draw_before(
    row_ptr, from_token, to_token, vocab, scale, best, limit, min_p, seed, position,
    SPANS: tl.constexpr, WIDTH: tl.constexpr, ABOVE: tl.constexpr = False,
):  # fmt: skip
    """Key, with noise, of the best of some tokens that come before the limit and have min_p of the best one's mass.

    ABOVE: the limit is a score, not a token of it, so what is before is above.
    """
    best_noisy = tl.full((SPANS, WIDTH), float("-inf"), tl.float32)
    best_token = from_token + tl.arange(0, SPANS)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    lowest = lowest_score(best, min_p)
    for start in range(from_token, to_token, SPANS * WIDTH):
        logits, tokens = load_tile(row_ptr, start, vocab, SPANS, WIDTH)
        x = scaled(logits, scale)
        # A tile that cannot have any needs no noise.
        if tl.max(tl.max(x, axis=1), axis=0) >= tl.maximum(packed_score(limit), lowest):
            kept = (x > packed_score(limit)) if ABOVE else _before(x, tokens, limit)
            kept = kept & (x >= lowest)
            noisy = tl.where(kept, x + gumbel_tile(seed, position, start, SPANS, WIDTH), float("-inf"))
            better = noisy > best_noisy
            best_noisy = tl.where(better, noisy, best_noisy)
            best_token = tl.where(better, tokens, best_token)
    return best_of_tile(best_noisy, best_token)


@triton.jit
def survey_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, best_keys_ptr, drawn_keys_ptr, limits_ptr,
    highs_ptr, pivots_ptr, masses_ptr, lasts_ptr, found_ptr, new_found_ptr, row_stride, vocab, chunk_size,
    CHUNKS: tl.constexpr, SPANS: tl.constexpr, WIDTH: tl.constexpr, PIVOTS: tl.constexpr, FIRST: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """pivots float32 [n, PIVOTS]; masses int64 [n, PIVOTS, chunks] above them; lasts int64 [n, chunks].

    The last ones are the masses before the token drawn last, first those of all tokens. `limits` int64 and `highs`
    float32 [n] are the last round's. Tokens int64 [n], or UNDECIDED: found before and, with this, `new_found`.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    num_chunks = tl.num_programs(1)
    first = chunk * chunk_size
    row_ptr = logits_ptr + row * row_stride
    pdl.wait(PDL)
    scale, top_k, top_p, _, applies = parameters(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab)
    token = tl.load(found_ptr + row)
    if applies & (top_k == 0) & (top_p < 1.0) & (token == UNDECIDED):
        best = packed_score(best_key(best_keys_ptr, row, num_chunks, CHUNKS))
        high, low = best, best - _REACH
        drawn = lowest_limit()
        is_open = True
        if not FIRST:
            high = tl.load(highs_ptr + row)
            low = packed_score(tl.load(limits_ptr + row))
            drawn = drawn_key(row_ptr, drawn_keys_ptr, row, num_chunks, scale, CHUNKS)
            is_open = packed_score(drawn) <= high
            token = tl.where(is_open, UNDECIDED, packed_token(drawn))
        if is_open:
            pivots = ()
            for index in tl.static_range(PIVOTS):
                pivots = pivots + (_pivot(low, high, index, PIVOTS, FIRST),)
            masses = _measure(
                row_ptr, first, min(first + chunk_size, vocab), vocab, scale, best, pivots,
                drawn, SPANS, WIDTH, PIVOTS, FIRST,
            )  # fmt: skip
            for index in tl.static_range(PIVOTS):
                tl.store(masses_ptr + (row * PIVOTS + index) * num_chunks + chunk, masses[index])
                if chunk == 0:
                    tl.store(pivots_ptr + row * PIVOTS + index, pivots[index])
            tl.store(lasts_ptr + row * num_chunks + chunk, masses[PIVOTS])
    if chunk == 0:
        tl.store(new_found_ptr + row, token)


@triton.jit
def _of_all_chunks(masses_ptr, row, num_chunks, COUNT: tl.constexpr, CHUNKS: tl.constexpr):
    """A row's sums int64 [COUNT] of masses [n, COUNT, chunks]."""
    chunks = tl.arange(0, CHUNKS)[None, :]
    at = (row * COUNT + tl.arange(0, COUNT)[:, None]) * num_chunks + chunks
    return tl.sum(tl.load(masses_ptr + at, mask=chunks < num_chunks, other=0), axis=1)


@triton.jit
def _narrowed(
    limit, high, share, pivots_ptr, masses_ptr, row, num_chunks, CHUNKS: tl.constexpr, PIVOTS: tl.constexpr
):
    """(limit, high) after what the survey says of its pivots."""
    pivots = tl.load(pivots_ptr + row * PIVOTS + tl.arange(0, PIVOTS))
    reach = _of_all_chunks(masses_ptr, row, num_chunks, PIVOTS, CHUNKS) >= share
    limits = tl.where(reach, pack(pivots, tl.zeros((PIVOTS,), tl.int64)), lowest_limit())
    highs = tl.where(reach, float("inf"), pivots)
    return tl.maximum(limit, tl.max(limits, axis=0)), tl.minimum(high, tl.min(highs, axis=0))


@triton.jit
def draw_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seeds_ptr, positions_ptr, best_keys_ptr,
    last_keys_ptr, last_limits_ptr, last_highs_ptr, pivots_ptr, masses_ptr, lasts_ptr, shares_ptr, keys_ptr,
    limits_ptr, highs_ptr, found_ptr, new_found_ptr, row_stride, vocab, chunk_size, CHUNKS: tl.constexpr,
    SPANS: tl.constexpr, WIDTH: tl.constexpr, PIVOTS: tl.constexpr, FIRST: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Keys with noise int64 [n, chunks] of this round's draw, after the limits int64 and highs float32 [n] that hold.

    `last_keys`, `last_limits` and `last_highs` are the last round's; shares int64 [n] are the first round's work.
    `found` and `new_found` are as `survey_kernel`'s.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    num_chunks = tl.num_programs(1)
    first = chunk * chunk_size
    row_ptr = logits_ptr + row * row_stride
    pdl.wait(PDL)
    row_parameters = parameters(temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab)
    scale, top_k, top_p, min_p, applies = row_parameters
    token = tl.load(found_ptr + row)
    if applies & (top_k == 0) & (token == UNDECIDED):
        best = packed_score(best_key(best_keys_ptr, row, num_chunks, CHUNKS))
        limit, high = lowest_limit(), best
        share = tl.full((), ALL, tl.int64)
        is_open = True
        if not FIRST:
            limit, high = tl.load(last_limits_ptr + row), tl.load(last_highs_ptr + row)
        if top_p < 1.0:
            last_mass = tl.max(_of_all_chunks(lasts_ptr, row, num_chunks, 1, CHUNKS), axis=0)
            if FIRST:
                share = share_of(last_mass, top_p)
            else:
                share = tl.load(shares_ptr + row)
                drawn = drawn_key(row_ptr, last_keys_ptr, row, num_chunks, scale, CHUNKS)
                is_open = last_mass >= share
                limit = tl.maximum(limit, drawn)
                token = tl.where(is_open, UNDECIDED, packed_token(drawn))
            narrowed = _narrowed(limit, high, share, pivots_ptr, masses_ptr, row, num_chunks, CHUNKS, PIVOTS)
            limit, high = narrowed
        else:
            high = float("-inf")
            is_open = FIRST
            if not FIRST:
                token = packed_token(drawn_key(row_ptr, last_keys_ptr, row, num_chunks, scale, CHUNKS))
        if is_open:
            seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
            key = draw_before(
                row_ptr, first, min(first + chunk_size, vocab), vocab, scale, best, limit,
                min_p, seed, position, SPANS, WIDTH, FIRST,
            )  # fmt: skip
            tl.store(keys_ptr + row * num_chunks + chunk, key)
            if chunk == 0:
                tl.store(limits_ptr + row, limit)
                tl.store(highs_ptr + row, high)
                if FIRST:
                    tl.store(shares_ptr + row, share)
    if chunk == 0:
        tl.store(new_found_ptr + row, token)
