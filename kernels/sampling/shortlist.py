# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The best few tokens of a row, from the best logits of its groups of tokens, and which place each has among them.

The k-th best of the groups' maxima is reached by at least k tokens, and seldom by many more; only groups that reach it
are read again. A token's place is how many of the list are better: all are compared with all, which for short lists is
less than a sort. One program does all of a row; what it writes, its own threads read after a barrier.
"""

import triton
import triton.language as tl

from kernels.sampling.narrowing import UNIT, relative_mass
from kernels.sampling.scores import GROUP, float_key, key_float, pack, packed_score, scaled

LONGEST = tl.constexpr(1024)
AT_ONCE = tl.constexpr(64)
"""Entries of a list that find their places at the same time, each among _OTHERS at a time."""
_OTHERS = tl.constexpr(32)
_GROUPS_AT_ONCE = tl.constexpr(32)
_LOWEST_KEY = tl.constexpr(-(2**63))
_KEY_OF_NOTHING = tl.constexpr(-(2**31))


@triton.jit
def _reached_by(keys, count):
    """An int32 key that at least `count` of keys int32 [n] reach, the highest with its lower 16 bits clear.

    The lowest of all where fewer than `count` are finite.
    """
    enough = tl.sum((keys >= 0).to(tl.int32), axis=0) >= count
    bound = tl.where(enough, 0, _KEY_OF_NOTHING)
    for step in range(15):
        candidate = bound + (1 << (30 - step))
        enough = tl.sum((keys >= candidate).to(tl.int32), axis=0) >= count
        bound = tl.where(enough, candidate, bound)
    return bound


@triton.jit
def collect(
    row_ptr, maxima_ptr, active_ptr, list_ptr, num_groups, vocab, scale, count, GROUPS: tl.constexpr
):  # fmt: skip
    """Write the keys of at least the `count` best tokens of a row, if so many are finite, to a list int64 [LONGEST].

    Returns (how many they are, of which the list holds the first LONGEST; a score that they all reach). `active` int32
    [num_groups] is for this alone.
    """
    groups = tl.arange(0, GROUPS)
    maxima = tl.load(maxima_ptr + groups, mask=groups < num_groups, other=float("-inf"))
    # What is not a number is no token's score.
    maxima = tl.where(maxima == maxima, maxima, float("-inf"))
    reached = _reached_by(float_key(maxima), count)
    bound = tl.where(reached <= float_key(float("-inf")), float("-inf"), key_float(reached))
    bound = scaled(bound, scale)
    is_active = (scaled(maxima, scale) >= bound) & (maxima > float("-inf"))
    places = tl.cumsum(is_active.to(tl.int32), axis=0)
    tl.store(active_ptr + places - 1, groups, mask=is_active)
    num_active = tl.max(places, axis=0)
    tl.debug_barrier()
    length = tl.full((), 0, tl.int32)
    for start in range(0, num_active, _GROUPS_AT_ONCE):
        entries = start + tl.arange(0, _GROUPS_AT_ONCE)
        group = tl.load(active_ptr + entries, mask=entries < num_active, other=num_groups)
        tokens = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
        x = scaled(tl.load(row_ptr + tokens, mask=tokens < vocab, other=float("-inf")), scale)
        keys = tl.reshape(pack(x, tokens), [_GROUPS_AT_ONCE * GROUP])
        taken = tl.reshape((x >= bound) & (x > float("-inf")), [_GROUPS_AT_ONCE * GROUP])
        ends = length + tl.cumsum(taken.to(tl.int32), axis=0)
        tl.store(list_ptr + ends - 1, keys, mask=taken & (ends <= LONGEST))
        length = tl.max(ends, axis=0)
    tl.debug_barrier()
    return length, bound


@triton.jit
def listed(list_ptr, length, start, ENTRIES: tl.constexpr):
    """(keys int64 [ENTRIES] of a list from `start` on, which of them there are)."""
    entries = start + tl.arange(0, ENTRIES)
    return tl.load(list_ptr + entries, mask=entries < length, other=_LOWEST_KEY), entries < length


@triton.jit
def list_masses(keys, are_listed, best):
    """Their masses, int64 in units, as shares of the best score's."""
    x = tl.where(are_listed, packed_score(keys), best)
    return tl.where(are_listed, (relative_mass(x, best) * UNIT).to(tl.int64), 0)


@triton.jit
def standing(list_ptr, length, keys, best):
    """(how many of a list are better than each of the keys int64 [n], int32; the mass of these, int64)."""
    ranks = tl.zeros(keys.shape, tl.int32)
    masses = tl.zeros(keys.shape, tl.int64)
    for start in range(0, length, _OTHERS):
        others, are_listed = listed(list_ptr, length, start, _OTHERS)
        is_better = others[None, :] > keys[:, None]
        ranks += tl.sum(is_better.to(tl.int32), axis=1)
        masses += tl.sum(tl.where(is_better, list_masses(others, are_listed, best)[None, :], 0), axis=1)
    return ranks, masses
