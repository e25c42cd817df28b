"""A gateway that leaves, as clients with connections to it see it: on real sockets, with no client of HTTP between."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from gateway.pool import Admission
from quire.v1 import tokenizer_pb2
from tests.gateway.conftest import API_KEY, RunningGateway
from tests.support.fake_tokenizer import Delta, last, usage
from tests.support.until import until

BODY = b'{"prompt": "Hi"}'


class KeptConnection:
    """One connection of HTTP/1.1 that its client does not close."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def head_of(self, method: str, path: str, body: bytes = b"") -> str:
        """Ask, and read all of the answer; its head in lower case."""
        lines = (f"{method} {path} HTTP/1.1", "Host: quire", f"Authorization: Bearer {API_KEY}")
        length = f"Content-Length: {len(body)}"
        self._writer.write("\r\n".join((*lines, length, "", "")).encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        (length,) = (line for line in head.split("\r\n") if line.startswith("content-length: "))
        await self._reader.readexactly(int(length.removeprefix("content-length: ")))
        return head

    async def closed(self) -> None:
        """Return when the server has closed it."""
        assert await self._reader.read() == b""


@asynccontextmanager
async def kept_connection(gateway: RunningGateway) -> AsyncIterator[KeptConnection]:
    """A connection on which one request has been answered."""
    host, _, port = gateway.service.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        connection = KeptConnection(reader, writer)
        assert "connection: close" not in await connection.head_of("GET", "/health/live")
        yield connection
    finally:
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def leaving(gateway: RunningGateway, admission: Admission) -> AsyncIterator[None]:
    """The gateway has been told to leave, and has come so far."""
    drain = asyncio.create_task(gateway.service.drain())
    try:
        await until(lambda: gateway.service.pool.admission is admission)
        yield
    finally:
        drain.cancel()
        await asyncio.gather(drain, return_exceptions=True)


@pytest.fixture
def gateway_settings(request: pytest.FixtureRequest) -> dict[str, object]:
    """How long it goes on taking requests is each test's own."""
    return {"leave_delay_s": getattr(request, "param", 0.0)}


@pytest.mark.parametrize("gateway_settings", [3600.0], indirect=True)
async def test_a_request_is_taken_while_others_still_learn_that_the_gateway_leaves(
    gateway: RunningGateway,
) -> None:
    async with kept_connection(gateway) as first, kept_connection(gateway) as second:
        async with leaving(gateway, Admission.LEAVING):
            not_ready = await first.head_of("GET", "/health/ready")
            taken = await second.head_of("POST", "/v1/completions", BODY)
            await first.closed()
            await second.closed()
        assert not_ready.startswith("http/1.1 503 ")
        assert taken.startswith("http/1.1 200 ")
        assert "connection: close" in not_ready
        assert "connection: close" in taken


async def test_a_refusal_ends_its_connection_while_streams_still_run(gateway: RunningGateway) -> None:
    go_on = asyncio.Event()

    async def script(_: tokenizer_pb2.TextRequest, send: Callable[[Delta], None]) -> None:
        send(Delta(text="Hel", num_tokens=1))
        await go_on.wait()
        send(last("lo", usage=usage(2)))

    gateway.tokenizer.script = script
    chunks = aiter(await gateway.sdk.completions.create(model="tiny", prompt="Hi", stream=True))
    await anext(chunks)
    async with kept_connection(gateway) as connection, leaving(gateway, Admission.CLOSED):
        refused = await connection.head_of("POST", "/v1/completions", BODY)
        await connection.closed()
        go_on.set()
        assert "".join([chunk.choices[0].text async for chunk in chunks]) == "lo"
    assert refused.startswith("http/1.1 503 ")
    assert "connection: close" in refused
    assert "retry-after: 1" in refused
