"""Sending a request on to the scheduler whose replicas serve it soonest.

Each scheduler tells its replicas' loads in its registry record, and the prefix index tells what each worker has
of a prompt; with both, `core.routing.cost` compares the replicas of others with one's own. A request is sent
on once at most, and only if that saves more than the way there costs. Redis away or slow: it stays.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import redis.asyncio as redis
import structlog

from quire.redis_client import RedisFailure
from quire.registry import HEARTBEAT_S, Record, members
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.routing import Load, Offer, cost
from scheduler_svc.core.scheduler import Scheduler
from scheduler_svc.prefix_index import PrefixIndex

log = structlog.get_logger()

# A request with so little before its first token here is not worth asking around for.
_SOON_POSITIONS = 128
# What another hop costs, with room for loads that are a heartbeat old, in prompt positions.
_HOP_POSITIONS = 256
_LOOKUP_S = 0.05
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


class Redirection:
    """Knows the other schedulers. Belongs to the event loop."""

    def __init__(self, client: redis.Redis, index: PrefixIndex, scheduler_id: str) -> None:
        self._client = client
        self._index = index
        self._id = scheduler_id
        self._others: dict[str, Record] = {}

    async def run(self) -> None:
        """Keep the other schedulers' records fresh until cancelled."""
        while True:
            try:
                known = await members(self._client, "scheduler")
                self._others = {
                    member: record
                    for member, record in known.items()
                    if member != self._id and record.get("state") == "ready" and record.get("replicas")
                }
            except RedisFailure:
                self._others = {}
            await asyncio.sleep(HEARTBEAT_S)

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody to send a request to."""
        return not self._others

    def anybody(self) -> str | None:
        """Address of the least loaded other scheduler."""
        if not self._others:
            return None
        return str(min(self._others.values(), key=_rows_per_replica)["address"])

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
        workers = [(r["worker"], int(r["epoch"])) for record in others.values() for r in record["replicas"]]
        try:
            async with asyncio.timeout(_LOOKUP_S):
                known = await self._index.count_known(workers, hashes[:_MAX_BLOCKS]) if hashes else {}
        except RedisFailure:
            known = {}
        offers = [
            Offer(
                str(record["address"]),
                Load(int(r["backlog"]), int(r["rows"])),
                num_tokens - known.get((r["worker"], int(r["epoch"])), 0) * block_size,
            )
            for record in others.values()
            for r in record["replicas"]
        ]
        best = min(offers, key=cost)
        return best.name if own_cost is None or cost(best) + _HOP_POSITIONS < own_cost else None


def _rows_per_replica(record: Mapping[str, Any]) -> float:
    return float(sum(int(r["rows"]) for r in record["replicas"]) / len(record["replicas"]))
