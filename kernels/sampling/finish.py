# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Each row's token: found by now, drawn from a shortlist if the row has top-k, or drawn until a draw is inside.

One program per row. A shortlist that is too long, as of logits that are all the same, is replaced by a search for the
key of the last token that top-k keeps: bisection over the row, slow, and exact as well.
"""

import triton
import triton.language as tl

from kernels import pdl
from kernels.sampling.narrowing import (
    draw_before,
    drawn_key,
    lowest_score,
    mass_before,
    share_of,
)
from kernels.sampling.noise import gumbel_of
from kernels.sampling.scores import (
    UNDECIDED,
    best_key,
    load_tile,
    pack,
    packed_score,
    packed_token,
    parameters,
    scaled,
)
from kernels.sampling.shortlist import AT_ONCE, LONGEST, collect, list_masses, listed, standing

_LOWEST_KEY = tl.constexpr(-(2**63))
_NEVER = tl.constexpr(2**63 - 1)


@triton.jit
def _from_list(list_ptr, befores_ptr, length, best, top_k, top_p, min_p, seed, position):
    """The token drawn from a list that holds all that top-k keeps; befores int64 [LONGEST] is for this alone."""
    total = tl.full((), 0, tl.int64)
    for start in range(0, length, AT_ONCE):
        keys, are_listed = listed(list_ptr, length, start, AT_ONCE)
        ranks, befores = standing(list_ptr, length, keys, best)
        kept = are_listed & (ranks < top_k)
        total += tl.sum(tl.where(kept, list_masses(keys, are_listed, best), 0), axis=0)
        entries = start + tl.arange(0, AT_ONCE)
        tl.store(befores_ptr + entries, tl.where(kept, befores, _NEVER), mask=are_listed)
    tl.debug_barrier()
    share = share_of(total, top_p)
    lowest = lowest_score(best, min_p)
    drawn = tl.full((), _LOWEST_KEY, tl.int64)
    for start in range(0, length, AT_ONCE):
        keys, are_listed = listed(list_ptr, length, start, AT_ONCE)
        entries = start + tl.arange(0, AT_ONCE)
        befores = tl.load(befores_ptr + entries, mask=are_listed, other=_NEVER)
        x = tl.where(are_listed, packed_score(keys), best)
        tokens = tl.where(are_listed, packed_token(keys), 0).to(tl.int32)
        kept = (befores < share) & (x >= lowest)
        noisy = pack(x + gumbel_of(seed, position, tokens), tokens)
        drawn = tl.maximum(drawn, tl.max(tl.where(kept, noisy, _LOWEST_KEY), axis=0))
    return packed_token(drawn)


@triton.jit
def _count_from(row_ptr, vocab, scale, key, SPANS: tl.constexpr, WIDTH: tl.constexpr):
    """How many tokens of a row have at least this key."""
    counts = tl.zeros((SPANS,), tl.int32)
    for start in range(0, vocab, SPANS * WIDTH):
        logits, tokens = load_tile(row_ptr, start, vocab, SPANS, WIDTH)
        counts += tl.sum((pack(scaled(logits, scale), tokens) >= key).to(tl.int32), axis=1)
    return tl.sum(counts, axis=0)


@triton.jit
def _limit_of_top_k(row_ptr, vocab, scale, low, high, top_k, SPANS: tl.constexpr, WIDTH: tl.constexpr):
    """The key before which are the top_k best tokens; they are known to be between the keys low and high."""
    while low < high:
        # Their mean, rounded up, without a sum that overflows.
        middle = (low | high) - ((low ^ high) >> 1)
        if _count_from(row_ptr, vocab, scale, middle, SPANS, WIDTH) >= top_k:
            low = middle
        else:
            high = middle - 1
    return low - 1


@triton.jit
def _drawn_inside(
    row_ptr, vocab, scale, best, outside, share, min_p, seed, position,
    SPANS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The token of the first draw that is inside its share, of those before the key `outside`."""
    is_open = True
    while is_open:
        noisy = draw_before(
            row_ptr, 0, vocab, vocab, scale, best, outside, min_p, seed, position, SPANS, WIDTH
        )
        token = packed_token(noisy)
        outside = pack(scaled(tl.load(row_ptr + token), scale), token)
        is_open = mass_before(row_ptr, vocab, scale, best, outside, SPANS, WIDTH) >= share
        # The best token is inside, so only rows that are not numbers run out of tokens.
        is_open = is_open & (packed_score(noisy) > float("-inf"))
    return packed_token(outside)


@triton.jit
def finish_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seeds_ptr, positions_ptr, best_keys_ptr,
    maxima_ptr, active_ptr, lists_ptr, befores_ptr, drawn_keys_ptr, highs_ptr, shares_ptr, found_ptr, out_ptr,
    row_stride, vocab, num_groups, num_chunks, GROUPS: tl.constexpr, CHUNKS: tl.constexpr, SPANS: tl.constexpr,
    WIDTH: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Tokens int64 [n], of the rows that are undecided and of those that were found before."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    pdl.wait(PDL)
    scale, top_k, top_p, min_p, applies = parameters(
        temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, row, vocab
    )
    token = tl.load(found_ptr + row)
    if token == UNDECIDED:
        best = best_key(best_keys_ptr, row, num_chunks, CHUNKS)
        best_score = packed_score(best)
        token = packed_token(best)
        seed, position = tl.load(seeds_ptr + row), tl.load(positions_ptr + row)
        outside = best
        if applies & (top_k > 0):
            list_ptr = lists_ptr + row * LONGEST
            length, bound = collect(
                row_ptr, maxima_ptr + row * num_groups, active_ptr + row * num_groups, list_ptr, num_groups,
                vocab, scale, top_k, GROUPS,
            )  # fmt: skip
            if (length > 0) & (length <= LONGEST):
                token = _from_list(
                    list_ptr, befores_ptr + row * LONGEST, length, best_score, top_k, top_p, min_p, seed, position
                )  # fmt: skip
            elif length > 0:
                token = tl.full((), UNDECIDED, tl.int64)
                lowest, highest = pack(bound, vocab - 1), pack(best_score, vocab * 0)
                outside = _limit_of_top_k(row_ptr, vocab, scale, lowest, highest, top_k, SPANS, WIDTH)
        elif applies:
            outside = drawn_key(row_ptr, drawn_keys_ptr, row, num_chunks, scale, CHUNKS)
            is_inside = packed_score(outside) > tl.load(highs_ptr + row)
            token = tl.where(is_inside, packed_token(outside), UNDECIDED)
        if token == UNDECIDED:
            mass = mass_before(row_ptr, vocab, scale, best_score, outside, SPANS, WIDTH)
            share = tl.load(shares_ptr + row)
            if top_k > 0:
                share = share_of(mass, top_p)
            elif mass < share:
                token = packed_token(outside)
            if token == UNDECIDED:
                token = _drawn_inside(
                    row_ptr, vocab, scale, best_score, outside, share, min_p, seed, position,
                    SPANS, WIDTH,
                )  # fmt: skip
    tl.store(out_ptr + row, token)
