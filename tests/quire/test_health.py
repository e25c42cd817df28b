"""What a container's health check says, and how it ends."""

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest

from quire.rpc.server import RpcServer


async def check(address: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "quire.health", address, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    return process.returncode, said.decode()


@pytest.fixture
async def server() -> AsyncIterator[RpcServer]:
    rpc = RpcServer("127.0.0.1:0")
    await rpc.start([])
    yield rpc
    await rpc.stop(0)


async def test_a_service_is_healthy_while_it_serves(server: RpcServer) -> None:
    assert await check(server.address) == (1, f"{server.address} does not serve: NOT_SERVING\n")
    await server.set_serving(True)
    assert await check(server.address) == (0, "")


async def test_http_is_healthy_when_it_answers_200() -> None:
    statuses = iter((b"503 Service Unavailable", b"200 OK"))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 " + next(statuses) + b"\r\n\r\nthe model is loading")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/health/ready"
        assert await check(url) == (1, f"{url} does not serve: HTTP 503: the model is loading\n")
        assert await check(url) == (0, "")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "http://127.0.0.1:9/health"])
async def test_nobody_there_is_one_clear_line(address: str) -> None:
    status, said = await check(address)
    assert status == 1
    assert said.startswith(f"{address} does not serve: ")
    assert said.count("\n") == 1
