"""A prefix index that is as bad as Redis may be: away, empty, behind, or back with what was true once."""

from enum import Enum

import numpy as np

from scheduler_svc.core.block_pool import NOBODY
from scheduler_svc.core.replica import Replica
from scheduler_svc.prefix_index import Entry
from tests.scheduler_svc.core.fake_worker import FakeWorker


class RedisState(Enum):
    """What becomes of commands."""

    WELL = "well"
    AWAY = "away"
    STALE = "stale"
    """Reads find what was there at some time before, of any process of the worker."""
    PARTIAL = "partial"
    """Reads find half of what is there."""


class FakeIndex:
    """Takes journals, late, and gives entries, as `PrefixIndex` does."""

    def __init__(self) -> None:
        self.state = RedisState.WELL
        self._entries: dict[tuple[str, int], dict[bytes, Entry]] = {}
        self._once: dict[str, dict[bytes, Entry]] = {}
        self._followed: dict[int, tuple[Replica, FakeWorker]] = {}
        self._unwritten: set[int] = set()

    def follow(self, replica: Replica, worker: FakeWorker) -> None:
        """Keep a replica's entries from now on."""
        replica.pool.journal = []
        self._followed[id(replica)] = replica, worker
        self._unwritten.add(id(replica))

    def unfollow(self, replica: Replica) -> None:
        """Its scheduler has given the worker up, or is dead."""
        if self._followed.pop(id(replica), None) is not None:
            replica.pool.journal = None

    def lose_all(self) -> None:
        """Redis comes back empty."""
        self._entries.clear()

    def flush(self) -> None:
        """Write what the journals hold; whole pools where a write before has failed."""
        for identity, (replica, worker) in self._followed.items():
            pool = replica.pool
            journal, pool.journal = pool.journal, []
            if self.state is RedisState.AWAY:
                self._unwritten.add(identity)
                continue
            key = (replica.description.worker_id, replica.description.worker_epoch)
            entries = self._entries.setdefault(key, {})
            changes = dict(journal or ())
            if identity in self._unwritten:
                self._unwritten.remove(identity)
                changes = dict.fromkeys(entries, NOBODY) | dict(pool.contents())
            for block_hash, block in changes.items():
                if block != NOBODY and pool.lookup(block_hash) == block:
                    checksum = int(worker.rows.checksums(np.asarray([block], np.int32))[0])
                    entries[block_hash] = Entry(block, replica.assigned[block], checksum)
                    # Of what a hash had before, the first is kept: the oldest lie there is.
                    self._once.setdefault(key[0], {}).setdefault(block_hash, entries[block_hash])
                else:
                    entries.pop(block_hash, None)

    async def load(self, worker_id: str, worker_epoch: int) -> dict[bytes, Entry]:
        """Every entry of a worker process, by hash. Raises OSError while Redis is away."""
        if self.state is RedisState.AWAY:
            raise ConnectionError("Redis is away")
        if self.state is RedisState.STALE:
            return dict(self._once.get(worker_id, {}))
        entries = self._entries.get((worker_id, worker_epoch), {})
        if self.state is RedisState.PARTIAL:
            return dict(list(entries.items())[::2])
        return dict(entries)
