"""One replica's KV blocks: who may take which, and which still hold a known prefix.

A block counts as held by every *owner* (a tenant's index) that has a reference to it, and while it is free it is
its last owner's. An owner may have a *floor*: blocks that others never take from it, held or cached, used or not.

Invariants (`check_integrity`):
* a block is in a free list exactly when its reference count is 0;
* a hash names at most one block, and that block's content is the hash's;
* blocks nobody can find are taken first, then the least recently freed, and those of an owner within its floor by
  nobody else and by itself last;
* held and cached blocks are counted exactly for each owner.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

NOBODY = -1
# So many hashes that ceased to be findable are known afterwards.
_MAX_FORGOTTEN = 512


class BlockPool:
    """Reference counts, free lists in eviction order, and the map from hash to block.

    The free lists are doubly linked through two integer lists with a sentinel each (index num_blocks + list), so
    that a block is taken out of a middle (a prefix hit) in constant time and without allocating. List 0 holds
    blocks that nobody can find, list 1 cached blocks; each owner with a floor has a list of its own besides.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_free = num_blocks
        self.num_cached = 0
        """Free blocks whose content is still findable."""
        self.held: dict[int, int] = {}
        """Blocks with references, by owner."""
        self._ref_counts = [0] * num_blocks
        self._owners = [NOBODY] * num_blocks
        self._guests: dict[int, dict[int, int]] = {}
        """References that owners beside the one in `_owners` have to a block, which few blocks have."""
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._blocks: dict[bytes, int] = {}
        self._freed_at = [0] * num_blocks
        self._num_frees = 0
        self._list_of = [num_blocks] * num_blocks
        """Sentinel of the list that each free block is in."""
        self._next = [*range(1, num_blocks + 1), 0, num_blocks + 1]
        self._previous = [num_blocks, *range(num_blocks), num_blocks + 1]
        self._floors: dict[int, int] = {}
        self._lists: dict[int, int] = {}
        """The cached list of each owner with a floor."""
        self._cached: dict[int, int] = {}
        """Length of each of those lists, by sentinel."""
        self.num_forgotten = 0
        """Hashes that ever ceased to be findable."""
        self._forgotten: deque[bytes] = deque(maxlen=_MAX_FORGOTTEN)
        """The last of those."""
        self.journal: list[tuple[bytes, int]] | None = None
        """If a list: every (hash, block) that became findable, and (hash, NOBODY) that ceased to be, in order."""

    # -- floors

    def set_floor(self, owner: int, blocks: int) -> None:
        """Reserve `blocks` for an owner; what it has cached already stays as evictable as it was."""
        if blocks:
            self._floors[owner] = blocks
            if owner not in self._lists:
                self._lists[owner] = sentinel = len(self._next)
                self._next.append(sentinel)
                self._previous.append(sentinel)
                self._cached[sentinel] = 0
        else:
            self._floors.pop(owner, None)

    @property
    def has_floors(self) -> bool:
        """Whether any owner has a floor."""
        return bool(self._floors)

    def floors_of_others(self, owner: int) -> int:
        """Blocks that are kept for owners other than this one."""
        return sum(floor for other, floor in self._floors.items() if other != owner) if self._floors else 0

    @property
    def spare(self) -> int:
        """Free blocks that no floor keeps for its owner."""
        if not self._floors:
            return self.num_free
        held = self.held
        return self.num_free - sum(
            max(0, floor - held.get(owner, 0)) for owner, floor in self._floors.items()
        )

    def reserved(self, owner: int) -> int:
        """Free blocks that the owner's floor keeps for it."""
        return max(0, self._floors.get(owner, 0) - self.held.get(owner, 0)) if self._floors else 0

    def floor(self, owner: int) -> int:
        """Blocks that are kept for the owner."""
        return self._floors.get(owner, 0)

    def is_above_floor(self, owner: int, more: int = 0) -> bool:
        """Whether the owner, with `more` blocks, holds more than its floor."""
        return self.held.get(owner, 0) + more > self._floors.get(owner, 0)

    def available(self, owner: int) -> int:
        """Blocks that this owner could take now."""
        return self.spare + self.reserved(owner)

    # -- blocks

    def lookup(self, block_hash: bytes) -> int | None:
        """The block that holds this content, or None. It may be free: `share` it before anything else."""
        return self._blocks.get(block_hash)

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks with these hashes, all of which can be found."""
        return list(map(self._blocks.__getitem__, hashes))

    def first_unknown(self, hashes: Sequence[bytes], first: int, most: int) -> int:
        """The place from `first` on of the first block that cannot be found by its hash; `most` if all before can."""
        blocks = self._blocks
        for place in range(first, most):
            if hashes[place] not in blocks:
                return place
        return most

    def forgotten_since(self, num_forgotten: int) -> list[bytes] | None:
        """The hashes that ceased to be findable since `num_forgotten` was this number; None: too many to know."""
        count = self.num_forgotten - num_forgotten
        return list(islice(reversed(self._forgotten), count)) if count <= len(self._forgotten) else None

    def ref_count(self, block: int) -> int:
        """How many sequences hold the block."""
        return self._ref_counts[block]

    def is_new_to(self, block: int, owner: int) -> bool:
        """Whether a reference to the block would be one more block that its owner holds."""
        if self._ref_counts[block] == 0:
            return True
        return owner != self._owners[block] and owner not in self._guests.get(block, ())

    def share(self, blocks: Iterable[int], owner: int = NOBODY) -> None:
        """Hold one more reference to each of the blocks, which `find` or `lookup` found."""
        ref_counts, owners = self._ref_counts, self._owners
        for block in blocks:
            if ref_counts[block] == 0:
                self._uncache(block)
                self._unlink(block)
                self._own(block, owner)
            elif owner != owners[block]:
                guests = self._guests.setdefault(block, {})
                if owner not in guests:
                    self.held[owner] = self.held.get(owner, 0) + 1
                guests[owner] = guests.get(owner, 0) + 1
            ref_counts[block] += 1

    def allocate(self, count: int, owner: int = NOBODY) -> list[int]:
        """Take the first `count` blocks of the eviction order, one reference each; their content is lost.

        The caller has made sure that `available(owner)` suffices.
        """
        assert count <= self.available(owner), f"{count} blocks asked for, {self.available(owner)} available"
        taken = []
        for _ in range(count):
            block = self._next[self.num_blocks]
            if block == self.num_blocks:
                block = self._oldest_cached(owner)
            self._uncache(block)
            self._unlink(block)
            self._forget(block)
            self._own(block, owner)
            self._ref_counts[block] = 1
            taken.append(block)
        return taken

    def commit(self, block: int, block_hash: bytes) -> None:
        """Make a held, full block findable, unless another that is held has the same content.

        One that is free gives its name up: it would be evicted before the blocks that follow this one.
        """
        assert self._ref_counts[block] > 0, f"block {block} committed while free"
        if self._hashes[block] is not None:
            return
        known = self._blocks.get(block_hash)
        if known is not None and self._ref_counts[known] == 0:
            self._uncache(known)
            self._unlink(known)
            self._forget(known)
            self._link(known)
            known = None
        if known is None:
            self._hashes[block] = block_hash
            self._blocks[block_hash] = block
            if self.journal is not None:
                self.journal.append((block_hash, block))

    def adopt(self, block: int, block_hash: bytes) -> None:
        """Make a free block findable that is known to hold this content from before."""
        if self._ref_counts[block] == 0 and self._hashes[block] is None and block_hash not in self._blocks:
            self._unlink(block)
            self._hashes[block] = block_hash
            self._blocks[block_hash] = block
            self._link(block)

    def free(self, blocks: Sequence[int], owner: int = NOBODY) -> None:
        """Give back one of the owner's references to each block of a table, given from root to leaf.

        The leaf goes into the free list first, so that it is evicted before the blocks it depends on.
        """
        for block in reversed(blocks):
            self._ref_counts[block] -= 1
            assert self._ref_counts[block] >= 0, f"block {block} freed twice"
            if block in self._guests:
                self._leave_shared(block, owner)
            elif self._ref_counts[block] == 0:
                self.held[owner] -= 1
                self._link(block)

    def contents(self) -> Mapping[bytes, int]:
        """Every findable hash and its block."""
        return self._blocks

    def check_integrity(self, tables: Iterable[tuple[int, Sequence[int]]]) -> None:
        """Assert the module's invariants, given every block table that holds references here, and its owner."""
        expected = [0] * self.num_blocks
        holding: set[tuple[int, int]] = set()
        for owner, table in tables:
            assert len(set(table)) == len(table), f"a block occurs twice in the table {table}"
            for block in table:
                expected[block] += 1
                holding.add((owner, block))
        assert expected == self._ref_counts, "reference counts differ from the tables"
        free = [block for sentinel in self._sentinels() for block in self._walk(sentinel)]
        assert sorted(free) == [b for b, count in enumerate(expected) if count == 0], "free list is wrong"
        assert self.num_free == len(free)
        assert self.num_cached == sum(self._hashes[b] is not None for b in free)
        named: Mapping[bytes, int] = {h: b for b, h in enumerate(self._hashes) if h is not None}
        assert named == self._blocks, "hashes and blocks differ"
        held = Counter(owner for owner, _ in holding)
        assert held == {owner: n for owner, n in self.held.items() if n}, "held blocks are miscounted"
        for sentinel, count in self._cached.items():
            assert count == len(list(self._walk(sentinel))), "cached blocks are miscounted"

    # -- the lists

    def _sentinels(self) -> list[int]:
        return [self.num_blocks, self.num_blocks + 1, *self._lists.values()]

    def _walk(self, sentinel: int) -> Iterable[int]:
        block, steps = self._next[sentinel], 0
        while block != sentinel:
            steps += 1
            assert steps <= self.num_blocks, "a free list has a cycle"
            yield block
            block = self._next[block]

    def _leave_shared(self, block: int, owner: int) -> None:
        """One of several owners' references to a block is gone."""
        guests = self._guests[block]
        if owner in guests:
            guests[owner] -= 1
            if guests[owner] == 0:
                del guests[owner]
                self.held[owner] -= 1
        elif self._ref_counts[block] == sum(guests.values()):
            # It was the last of the first owner's: another moves up.
            self.held[owner] -= 1
            heir = self._owners[block] = next(iter(guests))
            del guests[heir]
        if not guests:
            del self._guests[block]

    def _oldest_cached(self, owner: int) -> int:
        """The least recently freed of the cached blocks that `owner` may take; its own within its floor last."""
        best = own = NOBODY
        if self._next[self.num_blocks + 1] < self.num_blocks:
            best = self._next[self.num_blocks + 1]
        for other, sentinel in self._lists.items():
            block = self._next[sentinel]
            if block >= self.num_blocks:
                continue
            if self.held.get(other, 0) + self._cached[sentinel] <= self._floors.get(other, 0):
                own = block if other == owner else own
            elif best == NOBODY or self._freed_at[block] < self._freed_at[best]:
                best = block
        best = own if best == NOBODY else best
        assert best != NOBODY, "no block may be taken"
        return best

    def _own(self, block: int, owner: int) -> None:
        self._owners[block] = owner
        self.held[owner] = self.held.get(owner, 0) + 1

    def _uncache(self, block: int) -> None:
        """Count a block that is about to leave its free list."""
        if self._hashes[block] is not None:
            self.num_cached -= 1
            if self._list_of[block] in self._cached:
                self._cached[self._list_of[block]] -= 1

    def _forget(self, block: int) -> None:
        block_hash = self._hashes[block]
        if block_hash is not None:
            self._hashes[block] = None
            del self._blocks[block_hash]
            self.num_forgotten += 1
            self._forgotten.append(block_hash)
            if self.journal is not None:
                self.journal.append((block_hash, NOBODY))

    def _unlink(self, block: int) -> None:
        before, after = self._previous[block], self._next[block]
        self._next[before], self._previous[after] = after, before
        self.num_free -= 1

    def _link(self, block: int) -> None:
        if self._hashes[block] is None:
            # Nobody can find it, so it costs nothing to reuse: it goes to the front.
            before = self._list_of[block] = self.num_blocks
            after = self._next[before]
        else:
            after = self._list_of[block] = self._lists.get(self._owners[block], self.num_blocks + 1)
            before = self._previous[after]
            self.num_cached += 1
            self._num_frees += 1
            self._freed_at[block] = self._num_frees
            if after in self._cached:
                self._cached[after] += 1
        self._next[before] = self._previous[after] = block
        self._previous[block], self._next[block] = before, after
        self.num_free += 1
