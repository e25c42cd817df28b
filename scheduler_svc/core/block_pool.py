"""One replica's KV blocks: who may take which, and which still hold a known prefix.

Invariants (`check_integrity`):
* a block is in the free list exactly when its reference count is 0;
* a hash names at most one block, and that block's content is the hash's;
* the free list is in eviction order: blocks nobody can find first, then least recently freed first.
"""

from collections.abc import Iterable, Mapping, Sequence


class BlockPool:
    """Reference counts, a free list in eviction order, and the map from hash to block.

    The free list is doubly linked through two integer lists with a sentinel at index `num_blocks`, so that a
    block is taken out of its middle (a prefix hit) in constant time and without allocating.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_free = num_blocks
        self.num_cached = 0
        """Free blocks whose content is still findable."""
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._blocks: dict[bytes, int] = {}
        self._next = [*range(1, num_blocks + 1), 0]
        self._previous = [num_blocks, *range(num_blocks)]

    def lookup(self, block_hash: bytes) -> int | None:
        """The block that holds this content, or None. It may be free: `share` it before anything else."""
        return self._blocks.get(block_hash)

    def ref_count(self, block: int) -> int:
        """How many sequences hold the block."""
        return self._ref_counts[block]

    def share(self, block: int) -> None:
        """Hold one more reference to a block that `lookup` found."""
        if self._ref_counts[block] == 0:
            self._unlink(block)
            self.num_cached -= 1
        self._ref_counts[block] += 1

    def allocate(self, count: int) -> list[int]:
        """Take the first `count` blocks of the eviction order, one reference each; their content is lost.

        The caller has made sure that `num_free` suffices.
        """
        assert count <= self.num_free, f"{count} blocks asked for, {self.num_free} free"
        taken = []
        for _ in range(count):
            block = self._next[self.num_blocks]
            self._unlink(block)
            self._forget(block)
            self._ref_counts[block] = 1
            taken.append(block)
        return taken

    def commit(self, block: int, block_hash: bytes) -> None:
        """Make a held, full block findable. Content that another block holds already stays where it is."""
        assert self._ref_counts[block] > 0, f"block {block} committed while free"
        if self._hashes[block] is None and block_hash not in self._blocks:
            self._hashes[block] = block_hash
            self._blocks[block_hash] = block

    def free(self, blocks: Sequence[int]) -> None:
        """Give back one reference to each block of a table, given from root to leaf.

        The leaf goes into the free list first, so that it is evicted before the blocks it depends on.
        """
        for block in reversed(blocks):
            self._ref_counts[block] -= 1
            assert self._ref_counts[block] >= 0, f"block {block} freed twice"
            if self._ref_counts[block] == 0:
                self._link(block)

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert the module's invariants, given every block table that holds references here."""
        expected = [0] * self.num_blocks
        for table in tables:
            assert len(set(table)) == len(table), f"a block occurs twice in the table {table}"
            for block in table:
                expected[block] += 1
        assert expected == self._ref_counts, "reference counts differ from the tables"
        free, block = [], self._next[self.num_blocks]
        while block != self.num_blocks:
            free.append(block)
            assert len(free) <= self.num_blocks, "the free list has a cycle"
            block = self._next[block]
        assert sorted(free) == [b for b, count in enumerate(expected) if count == 0], "free list is wrong"
        assert self.num_free == len(free)
        assert self.num_cached == sum(self._hashes[b] is not None for b in free)
        named: Mapping[bytes, int] = {h: b for b, h in enumerate(self._hashes) if h is not None}
        assert named == self._blocks, "hashes and blocks differ"

    def _forget(self, block: int) -> None:
        block_hash = self._hashes[block]
        if block_hash is not None:
            self.num_cached -= 1
            self._hashes[block] = None
            del self._blocks[block_hash]

    def _unlink(self, block: int) -> None:
        before, after = self._previous[block], self._next[block]
        self._next[before], self._previous[after] = after, before
        self.num_free -= 1

    def _link(self, block: int) -> None:
        end = self.num_blocks
        if self._hashes[block] is None:
            # Nobody can find it, so it costs nothing to reuse: it goes to the front.
            before, after = end, self._next[end]
        else:
            before, after = self._previous[end], end
            self.num_cached += 1
        self._next[before] = self._previous[after] = block
        self._previous[block], self._next[block] = before, after
        self.num_free += 1
