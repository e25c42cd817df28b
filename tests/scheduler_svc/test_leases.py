"""Leases: one scheduler a worker, fenced by epochs, shared evenly, taken over, kept while Redis is away."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from unittest.mock import patch

import pytest
import redis.asyncio as redis

from quire import registry
from quire.redis_client import RedisFailure, open_redis
from quire.registry import Registration
from scheduler_svc import leases
from scheduler_svc.leases import Leases, TakeEpoch
from tests.support.redis_server import RedisServer


@dataclass
class Fleet:
    """What one scheduler's leases decide over; every worker it drives is connected."""

    epochs: dict[str, TakeEpoch] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    """Workers whose streams are broken."""
    handed_over: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    loads: dict[str, int] = field(default_factory=dict)

    def lease(self, worker: str, address: str, take_epoch: TakeEpoch) -> None:
        assert worker not in self.epochs
        self.epochs[worker], self.addresses[worker] = take_epoch, address

    def unlease(self, worker: str) -> None:
        del self.epochs[worker], self.addresses[worker]

    def hand_over(self, worker: str) -> None:
        self.handed_over.append(worker)

    def keep(self, worker: str) -> None:
        self.kept.append(worker)

    def is_connected(self, worker: str) -> bool:
        return worker in self.epochs and worker not in self.lost

    def load_of(self, worker: str) -> int:
        return self.loads.get(worker, 0)


class Scheduler:
    """Leases and what they decide over."""

    def __init__(self, client: redis.Redis, name: str, **static: str) -> None:
        self.client = client
        self.name = name
        self.fleet = Fleet()
        self.leases = Leases(client, name, self.fleet, static=static)

    @property
    def workers(self) -> set[str]:
        """Those whose leases it has."""
        return set(self.fleet.epochs)

    async def register(self) -> None:
        await Registration(self.client, "scheduler", self.name, dict).beat()


async def register(client: redis.Redis, *workers: str, **record: object) -> None:
    for worker in workers:
        told = {"address": f"{worker}:1", **record}
        await Registration(client, "worker", worker, lambda told=told: told).beat()  # type: ignore[misc]


async def turns(count: int, *schedulers: Scheduler) -> None:
    for _ in range(count):
        for scheduler in schedulers:
            await scheduler.leases.turn()


@pytest.fixture(autouse=True)
def timeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing expires and nobody's patience ends while a test runs, however slowly; expiry is made by hand."""
    monkeypatch.setattr(registry, "LIFETIME_S", 3600.0)
    for name in ("LEASE_S", "ORPHAN_S", "UNEVEN_S"):
        monkeypatch.setattr(leases, name, 3600.0)


@pytest.fixture
def no_orphans(timeless: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free is anybody's at once."""
    monkeypatch.setattr(leases, "ORPHAN_S", 0.0)


@pytest.fixture
def no_patience(timeless: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is uneven is evened out at once."""
    monkeypatch.setattr(leases, "UNEVEN_S", 0.0)


def clock(offset_s: float) -> Callable[[], int]:
    return lambda: int((1_000_000 + offset_s) * 1e9)


async def test_a_worker_is_leased_to_exactly_one_scheduler(redis_client: redis.Redis) -> None:
    first, second = Scheduler(redis_client, "first"), Scheduler(redis_client, "second")
    await register(redis_client, "w")
    await turns(3, first, second)
    assert (first.workers, second.workers) == ({"w"}, set())
    assert await redis_client.get("quire:lease:w") == b"first"
    assert 0 < await redis_client.pttl("quire:lease:w") <= leases.LEASE_S * 1000


async def test_every_stream_has_an_epoch_above_all_before_it(redis_client: redis.Redis) -> None:
    first, second = Scheduler(redis_client, "first"), Scheduler(redis_client, "second")
    await register(redis_client, "w")
    await first.leases.turn()
    epochs = [await first.fleet.epochs["w"]() for _ in range(3)]
    await redis_client.delete("quire:lease:w")  # as by expiry
    await second.leases.turn()
    epochs.append(await second.fleet.epochs["w"]())
    assert epochs == sorted(set(epochs))
    assert await first.fleet.epochs["w"]() == 0, "the lease is another's"


@pytest.mark.usefixtures("no_orphans")
async def test_a_dead_schedulers_worker_is_taken_over(redis_client: redis.Redis) -> None:
    dead, heir = Scheduler(redis_client, "dead"), Scheduler(redis_client, "heir")
    await register(redis_client, "w")
    await dead.leases.turn()
    await heir.leases.turn()
    assert heir.workers == set()
    await redis_client.delete("quire:lease:w")  # as by expiry
    await heir.leases.turn()
    assert heir.workers == {"w"}


async def test_a_scheduler_that_is_started_again_has_its_workers_at_once(redis_client: redis.Redis) -> None:
    await register(redis_client, "v", "w", driven=True)
    await redis_client.set("quire:lease:v", "s", px=4000)
    await redis_client.set("quire:lease:w", "s", px=4000)
    other, again = Scheduler(redis_client, "other"), Scheduler(redis_client, "s")
    await other.register()
    await again.leases.turn()
    assert again.workers == {"v", "w"}


async def test_leases_that_are_given_back_are_free_at_once(redis_client: redis.Redis) -> None:
    leaving, heir = Scheduler(redis_client, "leaving"), Scheduler(redis_client, "heir")
    await register(redis_client, "w")
    await leaving.leases.turn()
    await leaving.leases.close()
    await heir.leases.turn()
    assert heir.workers == {"w"}
    await leaving.leases.close()
    assert await redis_client.get("quire:lease:w") == b"heir", "only one's own is given back"


async def test_a_lease_that_was_lost_unnoticed_is_let_go(redis_client: redis.Redis) -> None:
    scheduler = Scheduler(redis_client, "s")
    await register(redis_client, "w")
    await scheduler.leases.turn()
    await redis_client.set("quire:lease:w", "another")
    await scheduler.leases.turn()
    assert scheduler.workers == set()
    assert await redis_client.get("quire:lease:w") == b"another"


async def test_a_lease_that_has_expired_and_is_nobodys_is_taken_back(redis_client: redis.Redis) -> None:
    scheduler = Scheduler(redis_client, "s")
    await register(redis_client, "w")
    await scheduler.leases.turn()
    await redis_client.delete("quire:lease:w")
    await scheduler.leases.turn()
    assert await redis_client.get("quire:lease:w") == b"s"
    assert scheduler.workers == {"w"}


async def test_a_worker_that_has_gone_is_let_go_when_its_stream_is_broken(redis_client: redis.Redis) -> None:
    scheduler = Scheduler(redis_client, "s")
    await register(redis_client, "w")
    await scheduler.leases.turn()
    await redis_client.delete("quire:worker:w")  # as by expiry
    await scheduler.leases.turn()
    assert scheduler.workers == {"w"}, "its stream says that it lives"
    scheduler.fleet.lost.add("w")
    await scheduler.leases.turn()
    assert scheduler.workers == set()
    assert await redis_client.get("quire:lease:w") is None


async def test_a_worker_that_was_started_elsewhere_is_found_there(redis_client: redis.Redis) -> None:
    scheduler = Scheduler(redis_client, "s")
    await register(redis_client, "w")
    await scheduler.leases.turn()
    scheduler.fleet.lost.add("w")
    await register(redis_client, "w", address="elsewhere:1")
    await scheduler.leases.turn()
    assert scheduler.fleet.addresses == {"w": "elsewhere:1"}


async def test_a_worker_that_leaves_is_emptied_and_taken_by_nobody(redis_client: redis.Redis) -> None:
    first, second = Scheduler(redis_client, "first"), Scheduler(redis_client, "second")
    await register(redis_client, "w")
    await first.leases.turn()
    await register(redis_client, "w", state="draining")
    await turns(1, first, second)
    assert first.fleet.handed_over == ["w"]
    assert first.workers == {"w"}, "it has still to empty itself"
    first.fleet.lost.add("w")
    await redis_client.delete("quire:worker:w")
    await turns(2, first, second)
    assert (first.workers, second.workers) == (set(), set())


async def test_workers_that_need_not_register_are_leased_too(redis_client: redis.Redis) -> None:
    scheduler = Scheduler(redis_client, "s", static="here:1")
    await scheduler.leases.turn()
    assert scheduler.fleet.addresses == {"static": "here:1"}


async def test_a_record_that_cannot_be_read_costs_nobody_else(redis_client: redis.Redis) -> None:
    scheduler = Scheduler(redis_client, "s")
    await register(redis_client, "w")
    records: list[dict[str, object]] = [
        {"state": "ready"},
        {"address": "\ud800:1"},
        *({"address": "y:1", "lease_epoch": epoch} for epoch in ("many", inf, -1, 2**53)),
    ]
    for number, record in enumerate(records):
        await redis_client.sadd("quire:workers", f"odd{number}")
        await redis_client.set(f"quire:worker:odd{number}", json.dumps(record))
    await scheduler.leases.turn()
    assert scheduler.workers == {"w"}


@pytest.mark.usefixtures("no_patience")
@pytest.mark.parametrize(
    ("num_workers", "shares"), [(4, [2, 2]), (3, [1, 2]), (4, [1, 1, 2]), (2, [0, 1, 1])]
)
async def test_schedulers_that_come_get_their_share_of_the_workers(
    redis_client: redis.Redis, num_workers: int, shares: list[int]
) -> None:
    schedulers = [Scheduler(redis_client, f"s{number}") for number in range(len(shares))]
    await register(redis_client, *(f"w{number}" for number in range(num_workers)))
    for scheduler in schedulers:
        await scheduler.register()
        await turns(12, *schedulers)
    assert sorted(len(scheduler.workers) for scheduler in schedulers) == shares
    before = [scheduler.workers for scheduler in schedulers]
    await turns(5, *schedulers)
    assert [scheduler.workers for scheduler in schedulers] == before, "what is even stays as it is"
    assert sum(map(len, before)) == num_workers


@pytest.mark.usefixtures("no_patience")
async def test_a_worker_goes_to_another_scheduler_only_when_its_sequences_have_moved(
    redis_client: redis.Redis,
) -> None:
    first, second = Scheduler(redis_client, "first"), Scheduler(redis_client, "second")
    await register(redis_client, "v", "w")
    await first.leases.turn()
    first.fleet.loads = {"v": 5, "w": 3}
    await second.register()
    await turns(4, first, second)
    assert first.fleet.handed_over == ["w"], "the emptier one"
    assert (first.workers, second.workers) == ({"v", "w"}, set())
    first.fleet.loads["w"] = 0
    await turns(2, first, second)
    assert (first.workers, second.workers) == ({"v"}, {"w"})


@pytest.mark.usefixtures("no_patience")
@pytest.mark.parametrize("load", [3, 0])
async def test_a_worker_that_was_to_go_has_work_again_while_redis_is_away(
    redis_server: RedisServer, load: int
) -> None:
    client = open_redis(redis_server.url)
    first, second = Scheduler(client, "first"), Scheduler(client, "second")
    await register(client, "v", "w")
    await first.leases.turn()
    first.fleet.loads = {"v": 5, "w": 3}
    await second.register()
    await first.leases.turn()
    assert first.fleet.handed_over == ["w"]
    first.fleet.loads["w"] = load
    redis_server.stop()
    with pytest.raises(RedisFailure):
        await first.leases.turn()
    assert (first.workers, first.fleet.kept) == ({"v", "w"}, ["w"])
    redis_server.start()
    await register(client, "v", "w")
    await second.register()
    first.fleet.loads["w"] = 0
    await turns(4, first, second)
    assert first.fleet.handed_over == ["w", "w"], "it goes when Redis is back"
    assert (first.workers, second.workers) == ({"v"}, {"w"})
    await client.aclose()


@pytest.mark.usefixtures("no_patience")
async def test_an_empty_worker_is_driven_until_redis_has_taken_its_lease_back(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Scheduler(redis_client, "first"), Scheduler(redis_client, "second")
    await register(redis_client, "v", "w")
    await first.leases.turn()
    await second.register()
    await first.leases.turn()
    (leaving,) = first.fleet.handed_over

    async def fail(**_: object) -> None:
        raise redis.ConnectionError("gone in between")

    with monkeypatch.context() as patched:
        patched.setattr(first.leases, "_release", fail)
        with pytest.raises(RedisFailure):
            await first.leases.turn()
    assert (first.workers, first.fleet.kept) == ({"v", "w"}, [leaving])


async def test_while_redis_is_away_everything_stays_and_epochs_go_on(redis_server: RedisServer) -> None:
    client = open_redis(redis_server.url)
    scheduler = Scheduler(client, "s")
    await register(client, "w")
    await scheduler.leases.turn()
    before = await scheduler.fleet.epochs["w"]()
    redis_server.stop()
    with pytest.raises(RedisFailure):
        await scheduler.leases.turn()
    assert scheduler.workers == {"w"}
    assert [await scheduler.fleet.epochs["w"]() for _ in range(2)] == [before + 1, before + 2]
    await scheduler.leases.close()  # gives up quietly
    await client.aclose()


async def test_who_alone_is_cut_off_from_redis_cannot_take_a_worker_back(redis_server: RedisServer) -> None:
    own, others = open_redis(redis_server.url), open_redis(redis_server.url)
    cut_off, heir = Scheduler(own, "cut-off"), Scheduler(others, "heir")
    await register(others, "w")
    await cut_off.leases.turn()
    await own.aclose()
    own.connection_pool.connection_kwargs["port"] = 1
    await others.delete("quire:lease:w")  # as by expiry
    await heir.leases.turn()
    newer = await heir.fleet.epochs["w"]()
    assert await cut_off.fleet.epochs["w"]() < newer, "the worker refuses it"
    await own.aclose()
    await others.aclose()


async def test_a_redis_that_came_back_empty_moves_no_worker(redis_server: RedisServer) -> None:
    client = open_redis(redis_server.url)
    holder, other = Scheduler(client, "holder"), Scheduler(client, "other")
    await register(client, "w")
    await holder.leases.turn()
    redis_server.restart()
    with pytest.raises(RedisFailure):
        await holder.leases.turn()
    # The worker is back before its scheduler is.
    await register(client, "w", driven=True)
    await turns(2, other)
    assert other.workers == set()
    await turns(2, holder, other)
    assert (holder.workers, other.workers) == ({"w"}, set())
    assert await client.get("quire:lease:w") == b"holder"
    await client.aclose()


async def test_what_is_uneven_for_a_moment_moves_no_worker(redis_client: redis.Redis) -> None:
    first, second = Scheduler(redis_client, "first"), Scheduler(redis_client, "second")
    await register(redis_client, "u", "v", "w")
    await first.leases.turn()
    await second.register()
    await turns(3, first, second)
    assert first.fleet.handed_over == []


async def test_epochs_grow_past_an_empty_redis_and_a_clock_that_is_behind(redis_server: RedisServer) -> None:
    client = open_redis(redis_server.url)
    with patch.object(time, "time_ns", clock(0)):
        fast = Scheduler(client, "fast")
        await register(client, "w")
        await fast.leases.turn()
        before = await fast.fleet.epochs["w"]()
    await client.aclose()
    redis_server.restart()
    client = open_redis(redis_server.url)
    await register(client, "w", lease_epoch=before)
    with patch.object(time, "time_ns", clock(-3600)):
        slow = Scheduler(client, "slow")
        await slow.leases.turn()
        assert await slow.fleet.epochs["w"]() > before
    await client.aclose()
