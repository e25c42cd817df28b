"""Redis answers, but each answer comes late: no stream waits for it, and no worker changes hands."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import openai
import pytest

from tests.fault.long_streams import long_stream
from tests.fault.test_workers_come_and_go import driven_by, until_charged_as_computed
from tests.support.checkpoints import checkpoint
from tests.support.fleet import Fleet, running_fleet
from tests.support.redis_server import RedisServer
from tests.support.server import API_KEY
from tests.support.wire import Wire, running_wire

pytestmark = [pytest.mark.fault, pytest.mark.e2e, pytest.mark.slow]

NUM_STREAMS = 8
SCHEDULERS, WORKERS = ("scheduler-a", "scheduler-b"), ("v", "w")
# Each process asks several times a second: with so many questions every lease has been renewed again and again.
ENOUGH_QUESTIONS = 300


@asynccontextmanager
async def fleet_behind(wire: Wire, folder: Path) -> AsyncIterator[tuple[Fleet, openai.AsyncOpenAI]]:
    """Two schedulers with a worker each, to whom the wire is Redis."""
    with running_fleet(folder, f"redis://{wire.address}/0", checkpoint()) as fleet:
        for worker in WORKERS:
            fleet.start_worker(worker)
        for scheduler in SCHEDULERS:
            fleet.start_scheduler(scheduler, "--max-decode-steps", "1")
        fleet.start_tokenizer("tokenizer")
        await asyncio.to_thread(fleet.start_gateway, "tokenizer")
        async with asyncio.timeout(120):
            while [len(each) for each in (await driven(fleet)).values()] != [1, 1]:
                await asyncio.sleep(0.05)
        async with openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key=API_KEY, max_retries=0) as client:
            yield fleet, client


async def driven(fleet: Fleet) -> dict[str, list[str]]:
    return {scheduler: await driven_by(fleet, scheduler) for scheduler in SCHEDULERS}


async def all_streams(client: openai.AsyncOpenAI) -> list[str]:
    return await asyncio.gather(*(long_stream(client, number) for number in range(NUM_STREAMS)))


@pytest.mark.parametrize("delay_s", [0.7, 2.0], ids=["within the client's patience", "beyond it"])
async def test_streams_go_on_and_workers_stay(
    redis_server: RedisServer, tmp_path: Path, delay_s: float
) -> None:
    async with (
        running_wire(f"127.0.0.1:{redis_server.port}") as wire,
        fleet_behind(wire, tmp_path) as (fleet, client),
    ):
        undisturbed = await all_streams(client)
        before = await driven(fleet)
        begun = asyncio.create_task(all_streams(client))
        wire.delay_s = delay_s
        asked = wire.num_asked
        assert await begun == undisturbed
        rounds = 2
        while wire.num_asked < asked + ENOUGH_QUESTIONS:
            # Steps that waited for Redis would take an hour.
            assert await all_streams(client) == undisturbed
            rounds += 1
        assert await driven(fleet) == before
        wire.delay_s = 0.0
        await until_charged_as_computed(redis_server, num_requests=rounds * NUM_STREAMS)
        assert await driven(fleet) == before
        logs = "".join(map(fleet.log_of, SCHEDULERS))
        assert "has gone to another scheduler" not in logs
        assert "worker disconnected" not in logs
        fleet.check()
