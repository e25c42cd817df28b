"""A thousand clients that leave at random moments leave no row, block, or queued sequence behind."""

import asyncio
import contextlib
from pathlib import Path
from random import Random

import openai
import pytest

from quire.rpc.channel import open_channel
from quire.v1 import scheduler_pb2_grpc, types_pb2
from tests.support.checkpoints import checkpoint
from tests.support.server import API_KEY, running_server

pytestmark = [pytest.mark.fault, pytest.mark.slow]

NUM_CLIENTS, AT_ONCE = 1000, 64


async def visit(client: openai.AsyncOpenAI, random: Random) -> None:
    """Leave before the answer begins, or somewhere in it."""
    patience = asyncio.timeout(random.expovariate(20)) if random.random() < 0.5 else contextlib.nullcontext()
    with contextlib.suppress(TimeoutError):
        async with patience:
            stream = await client.completions.create(
                model="tiny",
                prompt=[5 + random.randrange(700) for _ in range(random.randrange(1, 200))],
                max_tokens=1000,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            async with stream:
                for _ in range(random.randrange(10)):
                    await anext(aiter(stream))


async def test_nothing_is_left_of_them(tmp_path: Path) -> None:
    random = Random(1)
    with running_server(checkpoint(), tmp_path, "--max-rows", "16") as server:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as client:

            async def lane() -> None:
                for _ in range(NUM_CLIENTS // AT_ONCE + 1):
                    await visit(client, random)

            await asyncio.gather(*(lane() for _ in range(AT_ONCE)))
            async with open_channel(server.address("scheduler")) as channel, asyncio.timeout(120):
                scheduler = scheduler_pb2_grpc.SchedulerStub(channel)
                while True:
                    status = await scheduler.GetStatus(types_pb2.GetStatusRequest())
                    (replica,) = status.replicas
                    held = (replica.rows_used, replica.blocks_used, status.sequences_running)
                    if (*held, status.sequences_waiting, status.tokens_waiting) == (0, 0, 0, 0, 0):
                        break
                    await asyncio.sleep(0.05)
            after = await client.completions.create(model="tiny", prompt="one", max_tokens=3)
    assert after.usage is not None
