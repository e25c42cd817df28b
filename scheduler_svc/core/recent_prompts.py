"""Hashes of a prompt's blocks, as far as possible those of a recent prompt that begins alike.

A block's hash depends on what isolates the cache and on the tokens up to the block's end, so where two prompts begin
alike their hashes are the same. To compare tokens takes a hundredth of the time of hashing them, and the prompts of a
burst often begin alike for long. Nothing is decided by what is remembered here.
"""

from array import array
from typing import Any, NamedTuple

import numpy as np

from scheduler_svc.core.sequence import Sequence

# A prompt of 100,000 tokens and its hashes take a megabyte.
_MAX_KEPT = 32


class _Beginning(NamedTuple):
    """What prompts must have in common to be compared at all."""

    cache_root: bytes
    num_public_blocks: int
    first_block: bytes


class _Prompt(NamedTuple):
    token_ids: "array[int]"
    hashes: list[bytes]
    """Of its leading full blocks."""


class RecentPrompts:
    """Of each beginning the prompt that came last; the beginning that was not seen for longest is forgotten."""

    def __init__(self) -> None:
        self._latest: dict[_Beginning, _Prompt] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy knows nothing, and gives the same hashes."""
        return RecentPrompts, ()

    def hash(self, sequence: Sequence, block_size: int) -> None:
        """Hash all full blocks of a new sequence but the one that its last token fills, if it does."""
        tokens = sequence.token_ids
        count = (len(tokens) - 1) // block_size
        if count == 0:
            return
        beginning = _Beginning(
            sequence.request.cache_root,
            sequence.num_public_blocks(block_size),
            tokens[:block_size].tobytes(),
        )
        known = self._latest.pop(beginning, None)
        if known is not None:
            alike = _num_alike(known.token_ids, tokens) // block_size
            sequence.block_hashes = known.hashes[: min(alike, count)]
        sequence.hash_blocks(count, block_size)
        self._latest[beginning] = _Prompt(tokens, sequence.block_hashes)
        if len(self._latest) > _MAX_KEPT:
            del self._latest[next(iter(self._latest))]


def _num_alike(first: "array[int]", second: "array[int]") -> int:
    """How many leading tokens are the same; neither is empty."""
    shorter = min(len(first), len(second))
    differ = np.frombuffer(first, np.int32, shorter) != np.frombuffer(second, np.int32, shorter)
    place = int(differ.argmax())
    return place if differ[place] else shorter
