"""One server for all of these tests: a tiny Llama, every service a process."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import openai
import pytest

from quire.rpc.channel import open_channel
from tests.support.checkpoints import checkpoint
from tests.support.server import API_KEY, Server, running_server


@pytest.fixture(scope="session")
def llama() -> Path:
    """The checkpoint that is served."""
    return checkpoint("LlamaForCausalLM")


@pytest.fixture(scope="session")
def server(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ready server."""
    with running_server(llama, tmp_path_factory.mktemp("q"), "--max-rows", "64") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    """The SDK, as a user would make it."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as made:
        yield made


@pytest.fixture
async def async_client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    """The asyncio SDK."""
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as made:
        yield made


@pytest.fixture
async def scheduler_channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    """A gRPC channel to the scheduler inside."""
    async with open_channel(server.address("scheduler")) as channel:
        yield channel


@pytest.fixture
async def tokenizer_channel(server: Server) -> AsyncIterator[grpc.aio.Channel]:
    """A gRPC channel to the tokenizer service inside."""
    async with open_channel(server.address("tokenizer")) as channel:
        yield channel
