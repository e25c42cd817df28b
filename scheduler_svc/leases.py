"""Which workers this scheduler drives: leases in Redis, one holder each, fenced by an epoch.

Keys: `quire:lease:{worker}` holds the id of the scheduler that has the lease and expires LEASE_S after its last
renewal; `quire:lease-epoch:{worker}` holds the highest epoch handed out and expires EPOCH_S after the last one.
Each new lease has an epoch above all before it, and the worker refuses commands of an older one: a scheduler that
lost its lease without noticing cannot do harm.

The living schedulers share the living workers evenly: one that has its share leaves a free worker to the others,
for ORPHAN_S; one that has more for UNEVEN_S gives workers back, its emptiest first, after their sequences have moved.
While Redis is away everybody keeps the workers it has, those that were about to go too. So it is with a Redis that
comes back empty: a worker that is connected needs no record, and one that another scheduler drives is not free before
ORPHAN_S.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from math import inf
from typing import NamedTuple, Protocol

import redis.asyncio as redis
import structlog

from quire.redis_client import RedisFailure
from quire.registry import Record, members, text_of

log = structlog.get_logger()

LEASE_S = 4.0
ORPHAN_S = 1.5
# After a Redis came back empty some are seen before others.
UNEVEN_S = 3.0
EPOCH_S = 7 * 86_400
_MOST_EPOCH = 2**53
"""Above it Lua's numbers are not exact. Those of the clock reach it in the year 2255."""
_INTERVAL_S = 0.25

# KEYS: lease, epoch. ARGV: holder, lifetime in ms, lowest epoch (microseconds: exact in Lua's doubles), seconds
# that the epoch is kept. Takes the lease if nobody else has it, and returns a new epoch; 0: another has it.
_TAKE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
local epoch = math.max(tonumber(redis.call('GET', KEYS[2]) or '0') + 1, tonumber(ARGV[3]))
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[2], string.format('%.0f', epoch), 'EX', ARGV[4])
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

    def keep(self, worker: str) -> None:
        """Take `hand_over` back."""

    def is_connected(self, worker: str) -> bool:
        """Whether the worker's stream is open."""

    def load_of(self, worker: str) -> int:
        """Rows in use on a worker."""


class Found(NamedTuple):
    """What is known of a worker that could be leased."""

    address: str
    is_leaving: bool = False
    is_driven: bool = False
    """Whether a scheduler's stream to it is open."""
    lease_epoch: int = 0
    """Highest under which it was driven, as far as it says."""

    @classmethod
    def of_record(cls, record: Record) -> "Found":
        """From its entry in the registry. Raises KeyError, TypeError, ValueError or OverflowError for no worker's."""
        lease_epoch = int(record.get("lease_epoch", 0))
        if not 0 <= lease_epoch < _MOST_EPOCH:
            raise ValueError(f"{lease_epoch} is no lease epoch")
        is_leaving = record.get("state") == "draining"
        return cls(text_of(record, "address"), is_leaving, bool(record.get("driven")), lease_epoch)


class Leases:
    """The leases of one scheduler process."""

    def __init__(
        self, client: redis.Redis, holder: str, workers: Workers, *, static: Mapping[str, str]
    ) -> None:
        self._client = client
        self._holder = holder
        self._workers = workers
        self._static = {worker: Found(address) for worker, address in static.items()}
        """Workers that need not register: id (as for registered ones) to address."""
        self._found: dict[str, Found] = {}
        self._held: dict[str, str] = {}
        """Address of each worker whose lease is ours."""
        self._epochs: dict[str, int] = {}
        """The last epoch of each of them."""
        self._leaving: set[str] = set()
        """Those of them that go back when they are empty."""
        self._given: set[str] = set()
        """Those that went back so and are nobody's yet."""
        self._free_since: dict[str, float] = {}
        self._uneven_since = inf
        self._take = client.register_script(_TAKE)
        self._release = client.register_script(_RELEASE)

    async def run(self) -> None:
        """Take, renew and give back until cancelled."""
        is_away = False
        while True:
            try:
                await self.turn()
                is_away = False
            except RedisFailure as error:
                if not is_away:
                    log.warning("redis is away: workers stay as they are", error=str(error))
                is_away = True
            await asyncio.sleep(_INTERVAL_S)

    async def close(self) -> None:
        """Give every lease back, so that others need not wait for its end."""
        try:
            for worker in self._held:
                await self._release(keys=[_lease_key(worker)], args=[self._holder])
        except RedisFailure:
            return

    async def turn(self) -> None:
        """Once. Raises one of `RedisFailure`, and then the workers are as they were."""
        try:
            await self._turn()
        except RedisFailure:
            self._keep_leaving()
            raise

    async def _turn(self) -> None:
        # All at once: one after the other, the answers of a slow Redis would take longer than a lease lasts.
        _, workers, others = answers = await asyncio.gather(
            self._renew(),
            self._registered(),
            members(self._client, "scheduler"),
            return_exceptions=True,
        )
        if isinstance(workers, BaseException) or isinstance(others, BaseException) or answers[0] is not None:
            raise next(answer for answer in answers if isinstance(answer, BaseException))
        self._found = {**workers, **self._static}
        schedulers = others.keys() | {self._holder}
        await self._drop_gone()
        staying = {worker: found for worker, found in self._found.items() if not found.is_leaving}
        holders = await self._holders_of([worker for worker in staying if worker not in self._held])
        fewest, rest = divmod(len(staying), len(schedulers))
        most = fewest + (rest > 0)
        await self._take_free(staying, holders, most)
        for worker in list(self._leaving):
            if self._workers.load_of(worker) == 0:
                await self._give_back(worker)
                self._given.add(worker)
        held_by = Counter(holders.values())
        poorest = min((held_by[other] for other in schedulers if other != self._holder), default=most)
        self._even_out(staying, fewest, most, poorest)

    async def _registered(self) -> dict[str, Found]:
        found = {}
        for worker, record in (await members(self._client, "worker")).items():
            try:
                found[worker] = Found.of_record(record)
            except (KeyError, TypeError, ValueError, OverflowError):
                log.error("a worker's record cannot be read", worker=worker)
        return found

    async def _renew(self) -> None:
        held = list(self._held)
        if not held:
            return
        async with self._client.pipeline(transaction=False) as pipeline:
            for worker in held:
                pipeline.eval(_RENEW, 1, _lease_key(worker), self._holder, str(int(LEASE_S * 1000)))
            are_ours = await pipeline.execute()
        for worker, is_ours in zip(held, are_ours, strict=True):
            if not is_ours:
                log.warning("the lease of a worker has gone to another scheduler", worker=worker)
                self._drop(worker)

    async def _drop_gone(self) -> None:
        """Let go of workers that are not connected and not where they were; empty those that leave."""
        for worker, address in list(self._held.items()):
            found = self._found.get(worker)
            if found is not None and found.is_leaving:
                self._workers.hand_over(worker)
            is_there = found is not None and found.address == address
            if not is_there and not self._workers.is_connected(worker):
                await self._give_back(worker)

    async def _holders_of(self, workers: list[str]) -> dict[str, str]:
        """Who has the lease of each worker; "": nobody."""
        values = await self._client.mget([_lease_key(worker) for worker in workers]) if workers else []
        holders = (value.decode() if isinstance(value, bytes) else "" for value in values)
        return dict(zip(workers, holders, strict=True))

    async def _take_free(self, staying: Mapping[str, Found], holders: Mapping[str, str], share: int) -> None:
        """Take workers that nobody has; beyond our share, or while one is driven, only if it stays free."""
        now = time.monotonic()
        free = {worker for worker, holder in holders.items() if not holder}
        self._free_since = {worker: self._free_since.get(worker, now) for worker in free}
        self._given &= free
        for worker, holder in holders.items():
            found = staying[worker]
            is_wanted = len(self._held) < share and not found.is_driven and worker not in self._given
            is_orphan = worker in free and now - self._free_since[worker] >= ORPHAN_S
            # One of ours that we do not know: we have been started again.
            if not (is_orphan or holder == self._holder or (worker in free and is_wanted)):
                continue
            epoch = await self._take_epoch(worker)
            if epoch:
                self._held[worker], self._epochs[worker] = found.address, epoch
                self._workers.lease(worker, found.address, partial(self._stream_epoch, worker))

    def _even_out(self, staying: Mapping[str, Found], fewest: int, most: int, poorest: int) -> None:
        """Begin to give one worker back if we have more than our share, or two more than another scheduler."""
        ours = [worker for worker in self._held if worker in staying and worker not in self._leaving]
        if len(ours) <= most and (len(ours) <= fewest or len(ours) <= poorest + 1):
            self._uneven_since = inf
            return
        self._uneven_since = min(self._uneven_since, time.monotonic())
        is_under_way = self._leaving or self._given
        if is_under_way or time.monotonic() - self._uneven_since < UNEVEN_S:
            return
        emptiest = min(ours, key=lambda worker: (self._workers.load_of(worker), worker))
        log.info("handing a worker over: other schedulers have fewer", worker=emptiest)
        self._leaving.add(emptiest)
        self._workers.hand_over(emptiest)

    def _keep_leaving(self) -> None:
        """Nobody else can take a worker now: those that were to go have work again, and go another time."""
        for worker in self._leaving:
            found = self._found.get(worker)
            if found is None or not found.is_leaving:
                self._workers.keep(worker)
        self._leaving.clear()
        self._uneven_since = inf

    async def _take_epoch(self, worker: str) -> int:
        # What the worker says counts where Redis has forgotten, and a clock is behind.
        known = self._found[worker].lease_epoch if worker in self._found else 0
        lowest = max(time.time_ns() // 1000, known + 1)
        keys = [_lease_key(worker), f"quire:lease-epoch:{worker}"]
        return int(await self._take(keys=keys, args=[self._holder, int(LEASE_S * 1000), lowest, EPOCH_S]))

    async def _stream_epoch(self, worker: str) -> int:
        try:
            epoch = await self._take_epoch(worker)
        except RedisFailure:
            # Ours is still the newest, unless somebody who reaches Redis has taken the worker meanwhile: then the
            # worker refuses this one.
            epoch = self._epochs[worker] + 1
        if epoch:
            self._epochs[worker] = epoch
        return epoch

    async def _give_back(self, worker: str) -> None:
        # Without an answer it stays ours, and driven: Redis may be away for long.
        await self._release(keys=[_lease_key(worker)], args=[self._holder])
        self._drop(worker)

    def _drop(self, worker: str) -> None:
        del self._held[worker], self._epochs[worker]
        self._leaving.discard(worker)
        self._workers.unlease(worker)


def _lease_key(worker: str) -> str:
    return f"quire:lease:{worker}"
