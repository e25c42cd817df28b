"""A worker that leaves fails no stream, and one that comes has work at once."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest
import redis.asyncio as redis

from quire.registry import HEARTBEAT_S
from quire.v1 import types_pb2
from tests.fault.long_streams import long_stream
from tests.support.checkpoints import checkpoint
from tests.support.fleet import Fleet, running_fleet
from tests.support.redis_server import RedisServer
from tests.support.server import API_KEY

pytestmark = [pytest.mark.fault, pytest.mark.e2e, pytest.mark.slow]

NUM_STREAMS = 8


@asynccontextmanager
async def fleet_with_workers(
    folder: Path, redis_server: RedisServer, *workers: str
) -> AsyncIterator[tuple[Fleet, openai.AsyncOpenAI]]:
    with running_fleet(folder, redis_server, checkpoint()) as fleet:
        for worker in workers:
            fleet.start_worker(worker)
        # Commands of one step each, so that a stream takes long enough to be disturbed.
        fleet.start_scheduler("scheduler", "--max-decode-steps", "1")
        fleet.start_tokenizer("tokenizer")
        fleet.start_gateway("tokenizer")
        async with asyncio.timeout(60):
            while await num_connected(fleet) < len(workers):
                await asyncio.sleep(0.02)
        async with openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key=API_KEY, max_retries=0) as client:
            yield fleet, client


async def num_connected(fleet: Fleet) -> int:
    return sum(replica.connected for replica in (await fleet.scheduler_status("scheduler")).replicas)


@pytest.mark.parametrize("how", ["SIGTERM", "Drain"])
async def test_streams_move_from_a_worker_that_leaves(
    redis_server: RedisServer, tmp_path: Path, how: str
) -> None:
    async with fleet_with_workers(tmp_path, redis_server, "stays", "leaves") as (fleet, client):
        undisturbed = await asyncio.gather(*(long_stream(client, number) for number in range(NUM_STREAMS)))
        under_way = [asyncio.Event() for _ in range(NUM_STREAMS)]
        moving = asyncio.gather(
            *(long_stream(client, number, under_way[number]) for number in range(NUM_STREAMS))
        )
        await asyncio.gather(*(event.wait() for event in under_way))
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
    async with (
        fleet_with_workers(tmp_path, redis_server, "first") as (fleet, client),
        events_of(listener, "quire:worker:joins", "quire:lease:joins") as events,
    ):
        undisturbed = await long_stream(client, 0)
        fleet.start_worker("joins")
        heartbeats = 0
        async for key in events:
            if key == "quire:lease:joins":
                break
            heartbeats += 1
        assert heartbeats * HEARTBEAT_S <= 1.0
        async with asyncio.timeout(60):
            while not (await fleet.worker_status("joins")).tokens_computed:
                answers = await asyncio.gather(*(long_stream(client, 0) for _ in range(4)))
                assert answers == [undisturbed] * 4
        fleet.check()
    await listener.aclose()
