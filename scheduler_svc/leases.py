"""Which workers this scheduler drives: leases in Redis, one holder each, fenced by an epoch.

Keys: `quire:lease:{worker}` holds the id of the scheduler that has the lease and expires LEASE_S after its last
renewal; `quire:lease-epoch:{worker}` holds the highest epoch handed out. Each new lease has an epoch above all
before it, and the worker refuses commands of an older one: a scheduler that lost its lease without noticing
cannot do harm.

The living schedulers share the living workers evenly: one that has its share leaves a free worker to the others,
for ORPHAN_S; one that has more gives workers back, its emptiest first, after their sequences have moved.
While Redis is away everybody keeps the workers it has.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import redis.asyncio as redis
import structlog

from quire.redis_client import RedisFailure
from quire.registry import members

log = structlog.get_logger()

LEASE_S = 4.0
ORPHAN_S = 1.5
_INTERVAL_S = 0.25

# KEYS: lease, epoch. ARGV: holder, lifetime in ms, lowest epoch (microseconds: exact in Lua's doubles).
# Takes the lease if nobody else has it, and returns a new epoch; 0: another has it.
_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
local epoch = math.max(tonumber(redis.call('GET', KEYS[2]) or '0') + 1, tonumber(ARGV[3]))
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], string.format('%.0f', epoch))
return epoch
"""
# KEYS: lease. ARGV: holder, lifetime in ms. A lease that has expired is taken back; 0: another has it.
_RENEW = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
# KEYS: lease. ARGV: holder.
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""

TakeEpoch = Callable[[], Awaitable[int]]
"""A lease epoch for a new stream, above all before it; 0: the lease is another's."""


class Workers(Protocol):
    """What the leases decide over; workers by the id of their lease."""

    def lease(self, worker: str, address: str, take_epoch: TakeEpoch) -> None:
        """Drive this worker from now on."""

    def unlease(self, worker: str) -> None:
        """Give the worker's stream up, at once."""

    def hand_over(self, worker: str) -> None:
        """Begin to move the worker's sequences elsewhere."""

    def load_of(self, worker: str) -> int:
        """Rows in use on a worker."""


class Leases:
    """The leases of one scheduler process."""

    def __init__(
        self, client: redis.Redis, holder: str, workers: Workers, *, static: Mapping[str, str]
    ) -> None:
        self._client = client
        self._holder = holder
        self._workers = workers
        self._static = static
        """Workers that need not register: id (as for registered ones) to address."""
        self._held: dict[str, str] = {}
        """Address of each worker whose lease is ours."""
        self._leaving: set[str] = set()
        """Those of them that go back when they are empty."""
        self._free_since: dict[str, float] = {}
        self._take = client.register_script(_TAKE)
        self._renew = client.register_script(_RENEW)
        self._release = client.register_script(_RELEASE)

    async def run(self) -> None:
        """Take, renew and give back until cancelled."""
        while True:
            try:
                await self._turn()
            except RedisFailure as error:
                log.warning("redis is away: workers stay as they are", error=str(error))
            await asyncio.sleep(_INTERVAL_S)

    async def close(self) -> None:
        """Give every lease back, so that others need not wait for its end."""
        try:
            for worker in self._held:
                await self._release(keys=[_lease_key(worker)], args=[self._holder])
        except RedisFailure:
            return

    async def _turn(self) -> None:
        known = {**await self._registered(), **self._static}
        schedulers = await members(self._client, "scheduler")
        share = -(-len(known) // max(1, len(schedulers)))
        await self._renew_held(known)
        for worker, address in known.items():
            if worker not in self._held:
                await self._try(worker, address, len(self._held) < share)
        for worker in list(self._leaving):
            if self._workers.load_of(worker) == 0:
                await self._give_back(worker)
        if len(self._held) - len(self._leaving) > share and len(schedulers) > 1:
            staying = [worker for worker in self._held if worker not in self._leaving]
            emptiest = min(staying, key=lambda worker: (self._workers.load_of(worker), worker))
            log.info("handing a worker over: other schedulers have fewer", worker=emptiest)
            self._leaving.add(emptiest)
            self._workers.hand_over(emptiest)

    async def _registered(self) -> dict[str, str]:
        records = await members(self._client, "worker")
        return {
            worker: str(record["address"]) for worker, record in records.items() if not _is_leaving(record)
        }

    async def _renew_held(self, known: Mapping[str, str]) -> None:
        for worker, held_at in list(self._held.items()):
            is_ours = await self._renew(keys=[_lease_key(worker)], args=[self._holder, int(LEASE_S * 1000)])
            address = known.get(worker)
            if is_ours and (address is None or address == held_at):
                continue
            if not is_ours:
                log.warning("the lease of a worker has gone to another scheduler", worker=worker)
            self._drop(worker)

    async def _try(self, worker: str, address: str, is_wanted: bool) -> None:
        """Take a worker that nobody has; beyond our share only if nobody else takes it for a while."""
        if not is_wanted:
            if await self._client.exists(_lease_key(worker)):
                self._free_since.pop(worker, None)
                return
            since = self._free_since.setdefault(worker, time.monotonic())
            if time.monotonic() - since < ORPHAN_S:
                return
        self._free_since.pop(worker, None)
        if await self._take_epoch(worker):
            self._held[worker] = address
            self._workers.lease(worker, address, lambda: self._stream_epoch(worker))

    async def _take_epoch(self, worker: str) -> int:
        keys = [_lease_key(worker), f"quire:lease-epoch:{worker}"]
        args: list[str | int] = [self._holder, int(LEASE_S * 1000), _now_us()]
        return int(await self._take(keys=keys, args=args))

    async def _stream_epoch(self, worker: str) -> int:
        try:
            return await self._take_epoch(worker)
        except RedisFailure:
            # Without Redis nobody else can have taken the lease, and the clock is above every earlier epoch.
            return _now_us()

    async def _give_back(self, worker: str) -> None:
        self._drop(worker)
        await self._release(keys=[_lease_key(worker)], args=[self._holder])

    def _drop(self, worker: str) -> None:
        del self._held[worker]
        self._leaving.discard(worker)
        self._workers.unlease(worker)


def _now_us() -> int:
    return time.time_ns() // 1000


def _lease_key(worker: str) -> str:
    return f"quire:lease:{worker}"


def _is_leaving(record: Mapping[str, Any]) -> bool:
    return record.get("state") == "draining"
