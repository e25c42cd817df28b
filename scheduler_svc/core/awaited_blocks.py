"""Blocks of the sequences that wait for a row: what two of them begin with is computed once."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from scheduler_svc.core.sequence import Sequence


class AwaitedBlocks:
    """By their hashes, as a trie: to add or remove a sequence takes time for what it alone waits for."""

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}
        """How many of the sequences end with a block, and how many different blocks come after it."""
        self._lengths: dict[Sequence, int] = {}
        """Blocks of each sequence that are counted; it may have more by now."""

    def add(self, sequence: Sequence) -> None:
        """The sequence waits for its blocks, as far as they are hashed."""
        self._lengths[sequence] = len(sequence.block_hashes)
        for block_hash in reversed(sequence.block_hashes):
            self._counts[block_hash] = count = self._counts.get(block_hash, 0) + 1
            if count > 1:
                break

    def remove(self, sequence: Sequence) -> None:
        """It waits no more."""
        for place in range(self._lengths.pop(sequence) - 1, -1, -1):
            block_hash = sequence.block_hashes[place]
            self._counts[block_hash] -= 1
            if self._counts[block_hash]:
                break
            del self._counts[block_hash]

    def num_leading(self, hashes: list[bytes], first: int, most: int) -> int:
        """How many of a sequence's blocks from `first` up to `most` are in a row those of one that waits."""
        # Whoever waits for a block waits for those before it too.
        return bisect_left(range(first, most), True, key=lambda place: hashes[place] not in self._counts)

    def check_integrity(self, waiting: Iterable[Sequence]) -> None:
        """Assert that these wait, and that their blocks are counted."""
        paths = {s: s.block_hashes[: self._lengths[s]] for s in waiting}
        assert self._lengths.keys() == paths.keys()
        ends = Counter(path[-1] for path in paths.values() if path)
        goes_on = Counter(
            before for before, _ in {pair for path in paths.values() for pair in pairwise(path)}
        )
        assert self._counts == ends + goes_on, "blocks that are awaited are miscounted"
