"""A process dies in the middle of streams: they go on, with the tokens of an undisturbed run."""

import asyncio
import os
import signal
from pathlib import Path

import openai
import pytest

from tests.fault.long_streams import long_stream
from tests.fault.test_workers_come_and_go import fleet_with_workers
from tests.support.checkpoints import checkpoint
from tests.support.redis_server import RedisServer
from tests.support.server import API_KEY, is_ready, processes_of, running_server

pytestmark = [pytest.mark.fault, pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize("service", ["gpu_worker", "scheduler_svc", "tokenizer_svc"])
async def test_streams_outlive_a_killed_process(service: str, tmp_path: Path) -> None:
    with running_server(checkpoint(), tmp_path) as server:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as client:
            undisturbed = await asyncio.gather(*(long_stream(client, number) for number in range(8)))
            under_way = [asyncio.Event() for _ in range(8)]
            disturbed = asyncio.gather(
                *(long_stream(client, number, under_way[number]) for number in range(8))
            )
            await asyncio.gather(*(event.wait() for event in under_way))
            os.kill(processes_of(tmp_path)[service], signal.SIGKILL)
            assert await disturbed == undisturbed
            assert f"{service} was killed by SIGKILL; starting it again" in "".join(server.lines)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_new_requests_wait_for_the_only_tokenizer_service(
    redis_server: RedisServer, tmp_path: Path, how: signal.Signals
) -> None:
    async with fleet_with_workers(tmp_path, redis_server, "w") as (fleet, client):
        undisturbed = await asyncio.gather(*(long_stream(client, number) for number in range(8)))
        await asyncio.to_thread(fleet.end, "tokenizer", how)
        async with asyncio.timeout(60):
            while await asyncio.to_thread(fleet.metric, "gateway", "quire_gateway_sessions_connected"):
                await asyncio.sleep(0.02)
        assert await asyncio.to_thread(is_ready, fleet.url)
        answers = asyncio.gather(*(long_stream(client, number) for number in range(8)))
        fleet.start_tokenizer("tokenizer")
        assert await answers == undisturbed
        assert await asyncio.to_thread(fleet.metric, "gateway", "quire_gateway_requests_resumed_total") == 8
        fleet.check()
