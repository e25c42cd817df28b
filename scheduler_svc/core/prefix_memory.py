"""How many leading blocks of a sequence each pool holds, remembered between looks instead of walked anew.

A prefix found before changes in two ways only: a hash in it ceases to be findable, which the pool notes, or the
hash after it becomes so, which is looked up. So the length is always that of a walk from the root, in time that
grows with what has changed since the last look.
"""

from collections.abc import Sequence
from typing import NamedTuple

from scheduler_svc.core.block_pool import BlockPool


class _Known(NamedTuple):
    pool: BlockPool
    length: int
    num_forgotten: int
    """What the pool had forgotten at that time."""


class PrefixMemory:
    """Of one sequence that waits for a row."""

    __slots__ = ("_known", "_places")

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._places: dict[bytes, int] = {}
        """Where in the prefix each hash is, as far as that was needed."""

    def length(self, name: str, pool: BlockPool, hashes: Sequence[bytes], most: int) -> int:
        """How many of the first `most` of `hashes`, from the root on, the pool of the replica `name` holds in a row.

        `hashes` and `most` may grow between calls; the hashes that were there stay the same.
        """
        known = self._known.get(name)
        if known is None or known.pool is not pool:
            known = _Known(pool, 0, pool.num_forgotten)
        length = pool.first_unknown(hashes, self._still_held(known, hashes), most)
        self._known[name] = _Known(pool, length, pool.num_forgotten)
        return length

    def clear(self) -> None:
        """Forget everything."""
        self._known.clear()
        self._places.clear()

    def _still_held(self, known: _Known, hashes: Sequence[bytes]) -> int:
        if known.length == 0 or known.num_forgotten == known.pool.num_forgotten:
            return known.length
        forgotten = known.pool.forgotten_since(known.num_forgotten)
        if forgotten is None or len(forgotten) > known.length:
            return 0
        places = self._places
        for place in range(len(places), known.length):
            places[hashes[place]] = place
        # A place past the length is another replica's, or of a time when this one's was longer.
        return min((known.length, *map(places.__getitem__, places.keys() & forgotten)))
