"""The prefix index in Redis: which worker holds which blocks, written behind the steps.

Key `quire:blocks:{worker}:{epoch}`, one hash per worker process: 16-byte block hash -> block id, lease epoch and
step id of the command that assigned the block last (little-endian int32, uint64, uint64), and for one block in
256 a checksum of its content (uint64) besides. The epoch in the key voids the entries of a worker that restarted;
the assigning command voids those of a block that was given to another sequence since. A key holds at most as many
entries as the worker has blocks, about 100 bytes each, and expires LIFETIME_S after it was last written or
refreshed.

The pool in the scheduler's memory is the truth; this is a copy. A failed write is not repeated but made good:
the worker's key is written anew from the pool as soon as Redis answers again.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import redis.asyncio as redis
import structlog

from quire.redis_client import RedisFailure
from scheduler_svc import metrics
from scheduler_svc.core.replica import Replica

log = structlog.get_logger()

LIFETIME_S = 3600
_INTERVAL_S = 0.05
_REFRESH_S = 600.0
_CHUNK = 512
_ENTRY = struct.Struct("<iQQ")
_CHECKSUM = struct.Struct("<Q")

Checksums = Callable[[str, Sequence[int]], Awaitable[Mapping[int, int]]]
"""Asks the worker with this name for checksums of blocks, by block; those it cannot give are left out."""


class Entry(NamedTuple):
    """What the index says of one block."""

    block: int
    assigned: tuple[int, int]
    """(lease epoch, step id) of the command that assigned it last."""
    checksum: int | None = None

    def pack(self) -> bytes:
        """As it stands in Redis."""
        data = _ENTRY.pack(self.block, *self.assigned)
        return data if self.checksum is None else data + _CHECKSUM.pack(self.checksum)

    @classmethod
    def unpack(cls, data: bytes) -> "Entry":
        """The other way round. Raises struct.error for data of another length."""
        block, lease_epoch, step_id = _ENTRY.unpack(data[: _ENTRY.size])
        rest = data[_ENTRY.size :]
        return cls(block, (lease_epoch, step_id), _CHECKSUM.unpack(rest)[0] if rest else None)


def is_sampled(block_hash: bytes) -> bool:
    """Whether a block's checksum is kept too: one in 256, by its hash."""
    return block_hash[0] == 0


def key_of(worker_id: str, worker_epoch: int) -> str:
    """Redis key of a worker process's blocks."""
    return f"quire:blocks:{worker_id}:{worker_epoch}"


class PrefixIndex:
    """Writes what the pools' journals say; reads for adoption and for routing. Belongs to the event loop."""

    def __init__(self, client: redis.Redis, checksums: Checksums) -> None:
        self._client = client
        self._checksums = checksums
        self._replicas: dict[str, Replica] = {}
        self._stale: set[str] = set()
        """Keys to be written anew as a whole."""
        self._refreshed_at: dict[str, float] = {}

    # -- writing

    def follow(self, replica: Replica) -> None:
        """Keep a connected replica's entries; the key is written as a whole first."""
        replica.pool.journal = []
        self._replicas[replica.name] = replica
        self._stale.add(replica.name)

    def unfollow(self, name: str) -> None:
        """Another scheduler writes this worker's entries from now on, or nobody."""
        replica = self._replicas.pop(name, None)
        if replica is not None:
            replica.pool.journal = None
        self._stale.discard(name)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            for name in list(self._replicas):
                await self._write(name)

    async def flush(self) -> None:
        """Write what there is now, once."""
        for name in list(self._replicas):
            await self._write(name)

    async def _write(self, name: str) -> None:
        replica = self._replicas.get(name)
        if replica is None or replica.pool.journal is None:
            return
        now = asyncio.get_running_loop().time()
        journal, replica.pool.journal = replica.pool.journal, []
        key = key_of(replica.description.worker_id, replica.description.worker_epoch)
        try:
            if name in self._stale:
                await self._rewrite(replica, key)
                self._stale.discard(name)
                self._refreshed_at[name] = now
            elif journal:
                await self._put(replica, key, dict(journal))
            elif now - self._refreshed_at.get(name, 0.0) > _REFRESH_S:
                await self._client.expire(key, LIFETIME_S)
                self._refreshed_at[name] = now
        except RedisFailure as error:
            if name not in self._stale:
                log.warning("the prefix index cannot be written", worker=name, error=str(error))
            self._stale.add(name)
            metrics.index_failures.inc()

    async def _rewrite(self, replica: Replica, key: str) -> None:
        await self._client.delete(key)
        contents = list(replica.pool.contents().items())
        for start in range(0, len(contents), _CHUNK):
            # What changes meanwhile is in the journal.
            await self._put(replica, key, dict(contents[start : start + _CHUNK]))

    async def _put(self, replica: Replica, key: str, changes: Mapping[bytes, int]) -> None:
        """Write the newest state of some hashes: their block, or that of none any more."""
        # What has been evicted since is in the journal again, and its assigning command is another's.
        lookup = replica.pool.lookup
        held = {block_hash: block for block_hash, block in changes.items() if lookup(block_hash) == block}
        tags = {block_hash: replica.assigned[block] for block_hash, block in held.items()}
        checksums = await self._sample(replica, held)
        async with self._client.pipeline(transaction=False) as pipeline:
            gone = [block_hash for block_hash in changes if block_hash not in held]
            for start in range(0, len(gone), _CHUNK):
                pipeline.hdel(key, *gone[start : start + _CHUNK])
            entries = [
                (block_hash, Entry(block, tags[block_hash], checksums.get(block)).pack())
                for block_hash, block in held.items()
            ]
            for start in range(0, len(entries), _CHUNK):
                pipeline.hset(key, mapping=dict(entries[start : start + _CHUNK]))
            pipeline.expire(key, LIFETIME_S)
            await pipeline.execute()
        metrics.index_entries.inc(len(entries))

    async def _sample(self, replica: Replica, held: Mapping[bytes, int]) -> Mapping[int, int]:
        """Checksums of the sampled blocks that were not given to another sequence while they were read."""
        sampled = {block: block_hash for block_hash, block in held.items() if is_sampled(block_hash)}
        if not sampled:
            return {}
        checksums = await self._checksums(replica.name, list(sampled))
        pool = replica.pool
        return {
            block: checksum
            for block, checksum in checksums.items()
            if block in sampled and pool.lookup(sampled[block]) == block
        }

    # -- reading

    async def load(self, worker_id: str, worker_epoch: int) -> dict[bytes, Entry]:
        """Every entry of a worker process, by hash. Raises one of `RedisFailure`."""
        stored = await self._client.hgetall(key_of(worker_id, worker_epoch))
        entries: dict[bytes, Entry] = {}
        for block_hash, data in stored.items():
            assert isinstance(block_hash, bytes)
            assert isinstance(data, bytes)
            try:
                entries[block_hash] = Entry.unpack(data)
            except struct.error:
                log.error("an entry of the prefix index is no entry", worker=worker_id, length=len(data))
        return entries

    async def count_known(
        self, workers: Iterable[tuple[str, int]], hashes: Sequence[bytes]
    ) -> dict[tuple[str, int], int]:
        """How many leading blocks of a chain of hashes each worker process (id, epoch) holds.

        Raises one of `RedisFailure`.
        """
        workers = list(workers)
        async with self._client.pipeline(transaction=False) as pipeline:
            for worker_id, worker_epoch in workers:
                pipeline.hmget(key_of(worker_id, worker_epoch), list(hashes))
            found = await pipeline.execute()
        return {
            worker: next((i for i, value in enumerate(values) if value is None), len(values))
            for worker, values in zip(workers, found, strict=True)
        }
