"""The prefix index in Redis: which worker holds which blocks, written behind the steps.

Keys: `quire:blocks:{worker}:{epoch}`, one hash per worker process: 16-byte block hash -> block id, lease epoch and
step id of the command that assigned the block last (little-endian int32, uint64, uint64), and for one block in
256 a checksum of its content (uint64) besides. The epoch in the key voids the entries of a worker that restarted;
the assigning command voids those of a block that was given to another sequence since. `quire:blocks-epoch:{worker}`
names the epoch written last, so that the key of the process before is deleted by whoever writes the next: a worker
has one key, with at most as many entries as it has blocks. Both expire LIFETIME_S after they were last refreshed.

The pool in the scheduler's memory is the truth; this is a copy. A failed write is not repeated but made good:
the worker's key is brought in line with the pool as soon as Redis answers again. So is one that turns out, every
REFRESH_S, to hold another number of entries than the pool: a Redis that came back empty, or with what was saved.
"""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import redis.asyncio as redis
import structlog

from quire.redis_client import RedisFailure
from scheduler_svc import metrics
from scheduler_svc.core.block_pool import NOBODY
from scheduler_svc.core.replica import Replica

log = structlog.get_logger()

LIFETIME_S = 3600
_INTERVAL_S = 0.05
REFRESH_S = 2.0
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


@dataclass(slots=True)
class _Followed:
    """A worker's key, from one opening of its stream to the next."""

    replica: Replica
    is_stale: bool = True
    """Whether the key may differ from the pool by more than the journal."""
    checked_at: float = 0.0


class PrefixIndex:
    """Writes what the pools' journals say; reads for adoption and for routing. Belongs to the event loop."""

    def __init__(self, client: redis.Redis, checksums: Checksums) -> None:
        self._client = client
        self._checksums = checksums
        self._followed: dict[str, _Followed] = {}

    # -- writing

    def follow(self, replica: Replica) -> None:
        """Keep a connected replica's entries; the whole key is brought in line with its pool first."""
        replica.pool.journal = []
        self._followed[replica.name] = _Followed(replica)

    def unfollow(self, name: str) -> None:
        """Another scheduler writes this worker's entries from now on, or nobody."""
        followed = self._followed.pop(name, None)
        if followed is not None:
            followed.replica.pool.journal = None

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await self.flush()

    async def flush(self) -> None:
        """Write what there is now, once. A worker that is slow with its checksums holds up no other's entries."""
        await asyncio.gather(*map(self._write, self._followed.values()))

    async def _write(self, followed: _Followed) -> None:
        pool = followed.replica.pool
        if pool.journal is None:
            return
        now = asyncio.get_running_loop().time()
        journal, pool.journal = pool.journal, []
        num_entries = len(pool.contents())
        was_stale = followed.is_stale
        # Until it is written; also if this task is cancelled.
        followed.is_stale = True
        try:
            if was_stale:
                await self._rewrite(followed.replica)
                found = num_entries
            elif journal:
                found = await self._put(followed.replica, dict(journal))
            elif now - followed.checked_at > REFRESH_S:
                followed.checked_at = now
                found = await self._put(followed.replica, {})
            else:
                found = num_entries
        except RedisFailure as error:
            if not was_stale:
                log.warning(
                    "the prefix index cannot be written", worker=followed.replica.name, error=str(error)
                )
            metrics.index_failures.inc()
        else:
            followed.is_stale = found != num_entries

    async def _rewrite(self, replica: Replica) -> None:
        """Bring the whole key in line with the pool. What is true in it stays, whenever this is interrupted."""
        worker_id, epoch = replica.description.worker_id, str(replica.description.worker_epoch)
        epoch_key = f"quire:blocks-epoch:{worker_id}"
        earlier = await self._client.set(epoch_key, epoch, ex=LIFETIME_S, get=True)
        if isinstance(earlier, bytes) and earlier != epoch.encode():
            await self._void(worker_id, earlier)
        # In pieces: a step has its turn between two of them. What changes meanwhile is in the journal.
        key, pool, cursor = key_of(worker_id, replica.description.worker_epoch), replica.pool, -1
        while cursor:
            cursor, page = await self._client.hscan(key, max(0, cursor), count=_CHUNK)
            gone = [name for name in page if isinstance(name, bytes) and pool.lookup(name) is None]
            if gone:
                await self._put(replica, dict.fromkeys(gone, NOBODY))
        hashes = list(pool.contents())
        for start in range(0, len(hashes), _CHUNK):
            found = ((block_hash, pool.lookup(block_hash)) for block_hash in hashes[start : start + _CHUNK])
            await self._put(replica, {block_hash: block for block_hash, block in found if block is not None})

    async def _void(self, worker_id: str, epoch: bytes) -> None:
        """Delete what is known of an earlier process of a worker."""
        key = b"quire:blocks:%b:%b" % (worker_id.encode(), epoch)
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.hlen(key)
            pipeline.unlink(key)
            num_entries, _ = await pipeline.execute()
        metrics.index_refused.inc(num_entries)
        log.info("a worker was started again: entries are void", worker=worker_id, entries=num_entries)

    async def _put(self, replica: Replica, changes: Mapping[bytes, int]) -> int:
        """Write the newest state of some hashes: their block, or that of none any more.

        Returns how many entries the key has then.
        """
        worker_id = replica.description.worker_id
        key = key_of(worker_id, replica.description.worker_epoch)
        # What has been evicted since is in the journal again, and its assigning command is another's.
        lookup = replica.pool.lookup
        held = {block_hash: block for block_hash, block in changes.items() if lookup(block_hash) == block}
        tags = {block_hash: replica.assigned[block] for block_hash, block in held.items()}
        checksums = await self._sample(replica, held)
        async with self._client.pipeline(transaction=False) as pipeline:
            gone = [block_hash for block_hash in changes if block_hash not in held]
            # First, lest the key have more entries than the worker blocks.
            for start in range(0, len(gone), _CHUNK):
                pipeline.hdel(key, *gone[start : start + _CHUNK])
            entries = [
                (block_hash, Entry(block, tags[block_hash], checksums.get(block)).pack())
                for block_hash, block in held.items()
            ]
            for start in range(0, len(entries), _CHUNK):
                pipeline.hset(key, mapping=dict(entries[start : start + _CHUNK]))
            pipeline.expire(key, LIFETIME_S)
            pipeline.expire(f"quire:blocks-epoch:{worker_id}", LIFETIME_S)
            pipeline.hlen(key)
            *_, found = await pipeline.execute()
        metrics.index_entries.inc(len(entries))
        return int(found)

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
