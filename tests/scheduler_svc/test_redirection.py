"""Requests go on to the scheduler whose replicas serve them soonest, once, and never wait for Redis."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from math import inf
from typing import Any, NamedTuple

import pytest
import redis.asyncio as redis

from quire.packing import pack_int32, unpack_int32
from quire.registry import Registration
from quire.v1 import scheduler_pb2, types_pb2
from scheduler_svc import redirection as redirection_module
from scheduler_svc.core.routing import Load, Offer
from scheduler_svc.prefix_index import PrefixIndex
from scheduler_svc.redirection import Redirection
from tests.scheduler_svc.conftest import (
    Service,
    Sockets,
    expected,
    generate,
    running_scheduler,
    running_worker,
    token_request,
)
from tests.scheduler_svc.replicas import checksums_of_ids, connected_replica, content, fill
from tests.support.redis_server import RedisServer
from tests.support.until import until

Kind = scheduler_pb2.SchedulerSessionRequest
LONG = list(range(400))
CHAIN = [content(i) for i in range(24)]
LOOKUP_S = redirection_module.LOOKUP_S


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis answers, however long it takes on a busy machine; the test in which it does not says so."""
    monkeypatch.setattr(redirection_module, "LOOKUP_S", 60.0)


def own(cost: int) -> list[Offer]:
    return [Offer("here", Load(0, 0), cost)]


async def tell(client: redis.Redis, scheduler: str, **fields: object) -> None:
    replica = {"worker": f"w-{scheduler}", "epoch": 7, "backlog": 0, "rows": 0}
    record = {"address": f"{scheduler}:1", "state": "ready", "replicas": [replica]} | fields
    await Registration(client, "scheduler", scheduler, lambda: record).beat()


async def looking_around(client: redis.Redis) -> Redirection:
    redirection = Redirection(client, PrefixIndex(client, checksums_of_ids), "here")
    await redirection.look_around()
    return redirection


async def test_a_request_goes_where_its_prefix_is_if_that_saves_more_than_the_way(
    redis_client: redis.Redis,
) -> None:
    for scheduler in ("empty", "warm"):
        await tell(redis_client, scheduler)
    replica, index = connected_replica("w-warm"), PrefixIndex(redis_client, checksums_of_ids)
    index.follow(replica)
    fill(replica, CHAIN)
    await index.flush()
    redirection = await looking_around(redis_client)
    assert await redirection.better_address(CHAIN, 400, 16, own(400)) == "warm:1"
    assert await redirection.better_address(CHAIN, 400, 16, own(16 + 256)) is None, "it saves too little"
    assert await redirection.better_address(CHAIN, 400, 16, own(100)) is None, "it begins soon anyway"
    unknown = [content(100 + i) for i in range(24)]
    assert await redirection.better_address(unknown, 400, 16, own(400)) is None


async def test_a_request_goes_where_less_is_waiting(redis_client: redis.Redis) -> None:
    busy = {"worker": "v", "epoch": 1, "backlog": 5000, "rows": 3}
    await tell(redis_client, "busy", replicas=[busy])
    await tell(redis_client, "idle")
    redirection = await looking_around(redis_client)
    assert await redirection.better_address([], 400, 16, own(3000)) == "idle:1"


async def test_a_scheduler_without_workers_sends_everything_on(redis_client: redis.Redis) -> None:
    redirection = await looking_around(redis_client)
    assert redirection.is_alone
    assert await redirection.better_address([], 10, 16, []) is None
    await tell(redis_client, "other")
    redirection = await looking_around(redis_client)
    assert await redirection.better_address([], 10, 16, []) == "other:1"


async def test_nothing_goes_to_who_leaves_or_has_no_workers_or_says_nonsense(
    redis_client: redis.Redis,
) -> None:
    await tell(redis_client, "leaving", state="draining")
    await tell(redis_client, "bare", replicas=[])
    await tell(redis_client, "odd", replicas=[{"worker": "w"}])
    for number, worker in enumerate(({"epoch": inf}, {"worker": "\ud800"}, {"rows": "many"})):
        replica = {"worker": "w", "epoch": 1, "backlog": 0, "rows": 0} | worker
        await tell(redis_client, f"odd{number}", replicas=[replica])
    await tell(redis_client, "here")
    await redis_client.sadd("quire:schedulers", "empty")
    await redis_client.set("quire:scheduler:empty", json.dumps({}))
    assert (await looking_around(redis_client)).is_alone


class Pair(NamedTuple):
    """Two schedulers, each with a worker of its own."""

    first: Service
    second: Service


@asynccontextmanager
async def running_pair_of_schedulers(sockets: Sockets, url: str) -> AsyncIterator[Pair]:
    async with (
        running_worker(sockets("v"), worker_id="v"),
        running_worker(sockets("w"), worker_id="w"),
        running_scheduler(sockets("first"), sockets("v"), redis_url=url) as first,
        running_scheduler(sockets("second"), sockets("w"), redis_url=url) as second,
    ):
        pair = Pair(first, second)
        for service in pair:
            await service.until_state(types_pb2.SERVICE_STATE_READY)
        for service in pair:
            await until(lambda service=service: not service.servicer._redirection.is_alone)
        yield pair


async def answer(call: Any, handle: int) -> list[int] | str:
    """The tokens of a request on a session, or the address that it is sent on to."""
    tokens: list[int] = []
    while True:
        message = await call.read()
        for redirect in message.redirects:
            assert redirect.handle == handle
            return str(redirect.address)
        tokens += unpack_int32(message.batch.token_ids).tolist()
        if any(end.handle == handle for end in message.batch.ends):
            return tokens


async def test_a_session_is_told_of_the_better_scheduler_once(
    sockets: Sockets, redis_server: RedisServer
) -> None:
    async with running_pair_of_schedulers(sockets, redis_server.url) as (first, second):
        await generate(second, token_request(LONG, 4))
        await second.servicer._index.flush()
        call = first.stub.Session()
        submit = Kind.Submit(handle=1, request=token_request(LONG, 4))
        await call.write(Kind(submit=submit))
        assert await answer(call, 1) == second.address
        submit.handle, submit.request.redirected = 2, True
        await call.write(Kind(submit=submit))
        assert await answer(call, 2) == expected(LONG, 4), "it is not sent on again"
        submit = Kind.Submit(handle=3, request=token_request([1, 2, 3], 4))
        await call.write(Kind(submit=submit))
        assert await answer(call, 3) == expected([1, 2, 3], 4)
        call.cancel()


async def test_a_request_is_served_here_while_redis_does_not_answer(
    sockets: Sockets, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redirection_module, "LOOKUP_S", LOOKUP_S)
    async with running_pair_of_schedulers(sockets, redis_server.url) as (first, second):
        await generate(second, token_request(LONG, 4))
        call = first.stub.Session()
        redis_server.pause()
        for handle in range(3):
            submit = Kind.Submit(handle=handle, request=token_request(LONG, 4))
            await call.write(Kind(submit=submit))
            assert await answer(call, handle) == expected(LONG, 4)
        redis_server.resume()
        call.cancel()


@asynccontextmanager
async def asking(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Service, asyncio.Event, asyncio.Event]]:
    """A scheduler that looks at others for every request: since when, and until when, events tell."""
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def look_for_long(*_: object) -> None:
        asked.set()
        await may_answer.wait()

    async with (
        running_worker(sockets("v")),
        running_scheduler(sockets("first"), sockets("v")) as service,
    ):
        await service.until_state(types_pb2.SERVICE_STATE_READY)
        never_alone: Callable[..., Awaitable[None]] = look_for_long
        monkeypatch.setattr(service.servicer._redirection, "better_address", never_alone)
        monkeypatch.setattr(Redirection, "is_alone", False)
        yield service, asked, may_answer


async def test_a_sequence_that_is_over_already_does_not_go_on_after_the_look_around(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(sockets, monkeypatch) as (service, asked, may_answer):
        request = token_request([1, 2, 3], 50, n=2)
        request.resumed.add(sequence=0, token_ids=pack_int32([9, 9]))
        call = service.stub.Session()
        await call.write(Kind(submit=Kind.Submit(handle=1, request=request)))
        await call.write(Kind(finish=Kind.Finish(handle=1, sequence=0)))
        await asked.wait()
        may_answer.set()
        reasons: dict[int, int] = {}
        while len(reasons) < 2:
            message = await call.read()
            reasons |= {end.sequence: end.finish_reason for end in message.batch.ends}
        assert reasons == {0: types_pb2.FINISH_REASON_STOP, 1: types_pb2.FINISH_REASON_LENGTH}
        call.cancel()


async def test_a_request_that_is_cancelled_while_others_are_looked_at_never_runs(
    sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asking(sockets, monkeypatch) as (service, asked, may_answer):
        call = service.stub.Session()
        await call.write(Kind(submit=Kind.Submit(handle=1, request=token_request([1, 2, 3], 50))))
        await asked.wait()
        await call.write(Kind(cancel=Kind.Cancel(handle=1)))
        await until(lambda: not service.servicer._asking)
        may_answer.set()
        (replica,) = (await service.status()).replicas
        assert replica.last_step_sent == 0
        call.cancel()
