"""Sending a request on to the scheduler whose replicas serve it soonest.

Each scheduler tells its replicas' loads in its registry record, and the prefix index tells what each worker has
of a prompt; with both, `core.routing.cost` compares the replicas of others with one's own. A request is sent
on once at most, and only if that saves more than the way there costs. Redis away or slow: it stays.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

import redis.asyncio as redis
import structlog

from quire.redis_client import RedisFailure
from quire.registry import HEARTBEAT_S, Record, members, text_of
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.routing import Load, Offer, cost
from scheduler_svc.core.scheduler import Scheduler
from scheduler_svc.prefix_index import PrefixIndex

log = structlog.get_logger()

# A request with so little before its first token here is not worth asking around for.
_SOON_POSITIONS = 128
# What another hop costs, with room for loads that are a heartbeat old, in prompt positions.
_HOP_POSITIONS = 256
LOOKUP_S = 0.05
# As many blocks of a prompt are looked up elsewhere; longer prefixes count as this long.
_MAX_BLOCKS = 512


def describe(scheduler: Scheduler, address: str, *, draining: bool) -> dict[str, Any]:
    """This scheduler's registry record."""
    connected = [replica for replica in scheduler.replicas.values() if replica.connected]
    waiting = scheduler.queue.num_tokens // max(1, len(connected))
    return {
        "address": address,
        "state": "draining" if draining else "ready",
        "replicas": [_describe(replica, waiting) for replica in connected if not replica.draining],
    }


def _describe(replica: Replica, waiting: int) -> dict[str, Any]:
    load = replica.load
    return {
        "worker": replica.description.worker_id,
        "epoch": replica.description.worker_epoch,
        "backlog": load.backlog + waiting,
        "rows": load.rows,
    }


class Elsewhere(NamedTuple):
    """A replica of another scheduler, as of its last heartbeat."""

    scheduler: str
    """Address."""
    process: tuple[str, int]
    """The worker's id and epoch."""
    load: Load

    @classmethod
    def of_record(cls, record: Record) -> "list[Elsewhere]":
        """What `describe` wrote. Raises KeyError, TypeError, ValueError or OverflowError for no scheduler's record."""
        if record["state"] != "ready":
            return []
        return [
            cls(
                text_of(record, "address"),
                (text_of(replica, "worker"), int(replica["epoch"])),
                Load(int(replica["backlog"]), int(replica["rows"])),
            )
            for replica in record["replicas"]
        ]


class Redirection:
    """Knows the other schedulers. Belongs to the event loop."""

    def __init__(self, client: redis.Redis, index: PrefixIndex, scheduler_id: str) -> None:
        self._client = client
        self._index = index
        self._id = scheduler_id
        self._others: list[Elsewhere] = []

    async def run(self) -> None:
        """Keep the other schedulers' records fresh until cancelled."""
        while True:
            await self.look_around()
            await asyncio.sleep(HEARTBEAT_S)

    async def look_around(self) -> None:
        """Read the records once; without Redis there is nobody to send a request to."""
        try:
            known = await members(self._client, "scheduler")
        except RedisFailure:
            known = {}
        others: list[Elsewhere] = []
        for member, record in known.items():
            try:
                others += Elsewhere.of_record(record) if member != self._id else []
            except (KeyError, TypeError, ValueError, OverflowError):
                log.error("a scheduler's record cannot be read", scheduler=member)
        self._others = others

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to send a request to."""
        return not self._others

    async def better_address(
        self, hashes: Sequence[bytes], num_tokens: int, block_size: int, own: Sequence[Offer]
    ) -> str | None:
        """Address of the scheduler to send a request to, or None if it is best served here.

        `hashes` of its full prompt blocks; `own` offers of this scheduler's replicas, its queue counted in.
        """
        own_cost = min(map(cost, own), default=None)
        others = self._others
        if not others or (own_cost is not None and own_cost <= _SOON_POSITIONS):
            return None
        known: dict[tuple[str, int], int] = {}
        if hashes:
            try:
                async with asyncio.timeout(LOOKUP_S):
                    processes = [other.process for other in others]
                    known = await self._index.count_known(processes, hashes[:_MAX_BLOCKS])
            except RedisFailure:
                # Until the next heartbeat gets an answer no other request waits for one.
                self._others = []
                return None if own else others[0].scheduler
        offers = [
            Offer(other.scheduler, other.load, num_tokens - known.get(other.process, 0) * block_size)
            for other in others
        ]
        best = min(offers, key=cost)
        return best.name if own_cost is None or cost(best) + _HOP_POSITIONS < own_cost else None
