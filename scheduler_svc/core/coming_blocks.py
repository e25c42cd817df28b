"""Blocks of a replica that are being computed, and so will be findable soon: who computes which."""

from scheduler_svc.core.sequence import Sequence


class ComingBlocks:
    """By the blocks' hashes. Of two sequences that compute the same block it is the first."""

    def __init__(self) -> None:
        self._computing: dict[bytes, Sequence] = {}

    def begin(self, sequence: Sequence, start: int, stop: int) -> None:
        """The sequence computes its blocks from `start` on, up to `stop`; both count blocks."""
        for block_hash in sequence.block_hashes[start:stop]:
            self._computing.setdefault(block_hash, sequence)

    def end(self, sequence: Sequence, start: int, stop: int) -> None:
        """It has computed them, or will not."""
        for block_hash in sequence.block_hashes[start:stop]:
            if self._computing.get(block_hash) is sequence:
                del self._computing[block_hash]

    def clear(self) -> None:
        """Nothing is computed any more."""
        self._computing.clear()

    def num_leading(self, hashes: list[bytes], first: int, most: int, priority: int) -> int:
        """How many blocks from `first` up to `most` in a row are being computed.

        By what would be overtaken by this priority does not count.
        """
        place, computing = first, self._computing
        if computing:
            while place < most:
                sequence = computing.get(hashes[place])
                if sequence is None or sequence.request.priority > priority:
                    break
                place += 1
        return place - first

    def check_integrity(self, running: set[Sequence]) -> None:
        """Assert that only these compute."""
        assert set(self._computing.values()) <= running, "a prefix is awaited that nobody computes"
