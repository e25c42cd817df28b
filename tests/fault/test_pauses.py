"""A process stands still for a while, as a stopped machine or the collection of much garbage would make it."""

import asyncio
import os
import signal
from pathlib import Path

import openai
import pytest

from quire.rpc.channel import KEEPALIVE_TIMEOUT_S, open_channel
from quire.v1 import scheduler_pb2_grpc, types_pb2
from tests.fault.long_streams import long_stream
from tests.fault.test_workers_come_and_go import driven_by, fleet_with_workers, undisturbed_and_begun
from tests.support.checkpoints import checkpoint
from tests.support.redis_server import RedisServer
from tests.support.server import API_KEY, Server, processes_of, running_server

pytestmark = [pytest.mark.fault, pytest.mark.e2e, pytest.mark.slow]

NUM_STREAMS = 8
# How long the fault lasts; nobody waits for anything by it.
SHORT_S = KEEPALIVE_TIMEOUT_S - 2.0
LONG_S = 20.0


async def outcomes_around(client: openai.AsyncOpenAI, process: int, pause_s: float) -> list[str]:
    """The text of each of several streams in the midst of which a process is paused, or the error it ended with."""
    under_way = [asyncio.Event() for _ in range(NUM_STREAMS)]

    async def outcome(number: int) -> str:
        try:
            return await long_stream(client, number, under_way[number])
        except openai.APIError as error:
            return f"error: {error.message}"
        finally:
            under_way[number].set()

    streams = asyncio.gather(*map(outcome, range(NUM_STREAMS)))
    await asyncio.gather(*(event.wait() for event in under_way))
    os.kill(process, signal.SIGSTOP)
    try:
        await asyncio.sleep(pause_s)
    finally:
        os.kill(process, signal.SIGCONT)
    return await streams


async def until_nothing_runs(server: Server) -> None:
    async with open_channel(server.address("scheduler")) as channel, asyncio.timeout(120):
        stub: scheduler_pb2_grpc.SchedulerAsyncStub = scheduler_pb2_grpc.SchedulerStub(channel)
        while True:
            status = await stub.GetStatus(types_pb2.GetStatusRequest())
            (replica,) = status.replicas
            if (replica.rows_used, replica.blocks_used, status.sequences_waiting) == (0, 0, 0):
                return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("service", ["gateway", "tokenizer_svc", "scheduler_svc"])
async def test_a_pause_costs_time_alone(tmp_path: Path, service: str) -> None:
    with running_server(checkpoint(), tmp_path) as server:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as client:
            undisturbed = await asyncio.gather(
                *(long_stream(client, number) for number in range(NUM_STREAMS))
            )
            process = processes_of(tmp_path)[service]
            # Its peers do not notice, or give it up: what they gave up goes on where it was.
            for pause_s in (SHORT_S, LONG_S):
                assert await outcomes_around(client, process, pause_s) == undisturbed
            await until_nothing_runs(server)
            patient = client.with_options(max_retries=20)
            assert await long_stream(patient, 0) == undisturbed[0]
            assert processes_of(tmp_path)[service] == process, "it was started again"


async def test_streams_of_a_paused_scheduler_go_on_at_another_and_it_finds_its_place_again(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    schedulers = ("scheduler-a", "scheduler-b")
    async with fleet_with_workers(tmp_path, redis_server, "v", "w", schedulers=schedulers) as (fleet, client):
        undisturbed, streams = await undisturbed_and_begun(client)
        (its_worker,) = await driven_by(fleet, "scheduler-a")
        fleet.send("scheduler-a", signal.SIGSTOP)
        # While it stands still: its worker is the other's, and so are its streams.
        async with asyncio.timeout(120):
            while its_worker not in await driven_by(fleet, "scheduler-b"):
                await asyncio.sleep(0.05)
        assert await streams == undisturbed
        fleet.send("scheduler-a", signal.SIGCONT)
        async with asyncio.timeout(120):
            while [len(await driven_by(fleet, name)) for name in schedulers] != [1, 1]:
                await asyncio.sleep(0.05)
        assert await asyncio.gather(*(long_stream(client, number) for number in range(8))) == undisturbed
        fleet.check()
