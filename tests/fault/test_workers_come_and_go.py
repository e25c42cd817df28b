"""A worker that leaves fails no stream, and one that comes has work at once."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
import redis.asyncio as redis

from quire.redis_client import open_redis
from quire.registry import HEARTBEAT_S
from quire.v1 import types_pb2
from tests.fault.long_streams import long_stream
from tests.fault.test_five_hundred_requests import ledger
from tests.support.checkpoints import checkpoint
from tests.support.fleet import Fleet, running_fleet
from tests.support.redis_server import RedisServer
from tests.support.server import API_KEY

pytestmark = [pytest.mark.fault, pytest.mark.e2e, pytest.mark.slow]

NUM_STREAMS = 8


@asynccontextmanager
async def fleet_with_workers(
    folder: Path,
    redis_server: RedisServer,
    *workers: str,
    schedulers: tuple[str, ...] = ("scheduler",),
    worker_return_s: float = 60.0,
) -> AsyncIterator[tuple[Fleet, openai.AsyncOpenAI]]:
    """Workers, each leased, and shared evenly."""
    with running_fleet(folder, redis_server.url, checkpoint()) as fleet:
        for worker in workers:
            fleet.start_worker(worker)
        for scheduler in schedulers:
            # Commands of one step each, so that a stream takes long enough to be disturbed.
            flags = ("--max-decode-steps", "1", "--worker-return-s", str(worker_return_s))
            fleet.start_scheduler(scheduler, *flags)
        fleet.start_tokenizer("tokenizer")
        fleet.start_gateway("tokenizer")
        async with asyncio.timeout(120):
            while [len(await driven_by(fleet, name)) for name in schedulers] != [
                len(workers) // len(schedulers)
            ] * len(schedulers):
                await asyncio.sleep(0.02)
        async with openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key=API_KEY, max_retries=0) as client:
            yield fleet, client


async def driven_by(fleet: Fleet, scheduler: str) -> list[str]:
    replicas = (await fleet.scheduler_status(scheduler)).replicas
    return [replica.worker.worker_id for replica in replicas if replica.connected]


async def undisturbed_and_begun(
    client: openai.AsyncOpenAI,
) -> tuple[list[str], "asyncio.Future[list[str]]"]:
    """What streams are to say, and the same streams again, all under way."""
    undisturbed = await asyncio.gather(*(long_stream(client, number) for number in range(NUM_STREAMS)))
    under_way = [asyncio.Event() for _ in range(NUM_STREAMS)]
    streams = asyncio.gather(
        *(long_stream(client, number, under_way[number]) for number in range(NUM_STREAMS))
    )
    await asyncio.gather(*(event.wait() for event in under_way))
    return undisturbed, streams


@pytest.mark.parametrize("how", ["SIGTERM", "Drain"])
async def test_streams_move_from_a_worker_that_leaves(
    redis_server: RedisServer, tmp_path: Path, how: str
) -> None:
    async with fleet_with_workers(tmp_path, redis_server, "stays", "leaves") as (fleet, client):
        undisturbed, moving = await undisturbed_and_begun(client)
        assert (await fleet.worker_status("leaves")).rows_used > 0
        if how == "SIGTERM":
            fleet.send("leaves", signal.SIGTERM)
        else:
            async with fleet.worker("leaves") as stub:
                await stub.Drain(types_pb2.DrainRequest())
        assert await asyncio.to_thread(fleet.processes.pop("leaves").wait) == 0
        assert not moving.done(), "it left before the streams ended"
        assert await moving == undisturbed
        fleet.check()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
async def test_streams_move_from_a_scheduler_that_has_lost_its_only_worker(
    redis_server: RedisServer, tmp_path: Path, how: signal.Signals
) -> None:
    schedulers = ("scheduler-a", "scheduler-b")
    async with fleet_with_workers(tmp_path, redis_server, "v", "w", schedulers=schedulers) as (fleet, client):
        undisturbed, moving = await undisturbed_and_begun(client)
        assert all([(await fleet.worker_status(name)).rows_used for name in ("v", "w")])
        (lost,) = await driven_by(fleet, "scheduler-a")
        ended = await asyncio.to_thread(fleet.end, lost, how)
        assert ended == (0 if how == signal.SIGTERM else -how)
        assert await moving == undisturbed
        # And what comes now is served.
        assert await long_stream(client, 0) == undisturbed[0]
        await until_charged_as_computed(redis_server, num_requests=2 * NUM_STREAMS + 1)
        fleet.check()


async def until_charged_as_computed(redis_server: RedisServer, num_requests: int) -> None:
    """Return once the tenants' account is what workers told schedulers; a request that moved is one."""
    async with open_redis(redis_server.url) as client, asyncio.timeout(120):
        while True:
            charged = await ledger(client, "quire:usage:*")
            told = sum((await ledger(client, "quire:computed:*")).values())
            if (charged["requests"], charged["computed_tokens"]) == (num_requests, told):
                break
            await asyncio.sleep(0.05)
    assert charged["completion_tokens"] == 400 * num_requests
    assert charged["errors"] == 0


async def test_the_only_worker_that_is_told_to_leave_finishes_its_streams(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with fleet_with_workers(tmp_path, redis_server, "w") as (fleet, client):
        undisturbed, streams = await undisturbed_and_begun(client)
        assert await asyncio.to_thread(fleet.end, "w", signal.SIGTERM) == 0
        assert await streams == undisturbed
        fleet.check()


async def test_streams_of_the_only_worker_go_on_when_it_is_back(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with fleet_with_workers(tmp_path, redis_server, "w") as (fleet, client):
        undisturbed, streams = await undisturbed_and_begun(client)
        fleet.end("w", signal.SIGKILL)
        fleet.start_worker("w")
        assert await streams == undisturbed
        fleet.check()


async def test_requests_of_the_only_worker_end_with_an_error_to_try_again_when_it_does_not_come_back(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    async with fleet_with_workers(tmp_path, redis_server, "w", worker_return_s=0.5) as (fleet, client):
        _, streams = await undisturbed_and_begun(client)
        # No byte of it has been sent when there is no worker any more: it has a status of its own.
        whole = asyncio.create_task(
            client.completions.create(
                model="tiny", prompt="w", max_tokens=1500, extra_body={"ignore_eos": True, "priority": 9}
            )
        )
        async with asyncio.timeout(120):
            while (await fleet.scheduler_status("scheduler")).sequences_running <= NUM_STREAMS:
                await asyncio.sleep(0.01)
        fleet.end("w", signal.SIGKILL)
        with pytest.raises(openai.APIError, match="try again"):
            await streams
        with pytest.raises(openai.InternalServerError, match="try again") as caught:
            await whole
        assert caught.value.status_code == 503
        assert int(caught.value.response.headers["retry-after"]) > 0
        fleet.check()


@asynccontextmanager
async def events_of(client: redis.Redis, *keys: str) -> AsyncIterator[AsyncIterator[str]]:
    """Each of these keys whenever it is written."""
    await client.config_set("notify-keyspace-events", "K$")
    channels = {f"__keyspace@0__:{key}".encode(): key for key in keys}

    async def written() -> AsyncIterator[str]:
        async for message in subscription.listen():
            if message["type"] == "message":
                yield channels[message["channel"]]

    async with client.pubsub() as subscription:
        await subscription.subscribe(*channels)
        yield written()


async def test_a_worker_that_joins_is_leased_within_a_second_and_takes_work(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    # Events of Redis must not time out: a worker takes seconds to load.
    listener = redis.Redis.from_url(redis_server.url, protocol=2)
    async with fleet_with_workers(tmp_path, redis_server, "first") as (fleet, client):
        undisturbed = await long_stream(client, 0)
        (scheduler,) = [key.decode() for key in await listener.keys("quire:scheduler:*")]
        async with events_of(listener, "quire:worker:joins", "quire:lease:joins", scheduler) as events:
            fleet.start_worker("joins")
            while await anext(events) != "quire:worker:joins":
                pass
            # By the scheduler's own clock: a machine that lets it wait lets its heart wait, too.
            heartbeats = 0
            while (key := await anext(events)) != "quire:lease:joins":
                heartbeats += key == scheduler
        assert heartbeats * HEARTBEAT_S <= 1.0
        async with asyncio.timeout(120):
            while not (await fleet.worker_status("joins")).tokens_computed:
                answers = await asyncio.gather(*(long_stream(client, 0) for _ in range(4)))
                assert answers == [undisturbed] * 4
        fleet.check()
    await listener.aclose()
