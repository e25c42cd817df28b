"""Limits on connections, heads, bodies, numbers and time: each shown on real sockets, and the next client is served."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from quire.v1 import tokenizer_pb2
from tests.gateway.conftest import API_KEY, RunningGateway
from tests.gateway.test_bad_input import assert_clear, assert_serves
from tests.support.fake_tokenizer import Delta, last, usage
from tests.support.until import until

HEAD = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n"
GET = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n"

# For what a client sends at once after it has connected, on a busy machine too.
ENOUGH_S = 1.0


@dataclass
class Connection:
    """A client on a bare socket."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, text: str) -> None:
        self.writer.write(text.encode())

    async def status(self) -> int:
        """Of the next answer, whose body is read too."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 60)).decode().lower()
        length = head.partition("content-length: ")[2].partition("\r\n")[0]
        self.body = await self.reader.readexactly(int(length))
        return int(head.split(" ")[1])

    async def ends(self) -> bytes:
        """What still comes until the server closes."""
        try:
            return await asyncio.wait_for(self.reader.read(), 60)
        except ConnectionResetError:
            return b""


@asynccontextmanager
async def connected(gateway: RunningGateway) -> AsyncIterator[Connection]:
    host, _, port = gateway.service.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


def with_settings(**settings: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("gateway_settings", [settings], ids=[""])


@with_settings(header_timeout_s=ENOUGH_S)
async def test_a_head_that_trickles_in_is_ended_with_a_408(gateway: RunningGateway) -> None:
    async with connected(gateway) as slow:
        slow.send(HEAD)
        for number in range(50):  # a header now and then keeps nothing open
            slow.send(f"X-{number}: 1\r\n")
            await asyncio.sleep(0)
        assert await slow.status() == 408
        assert await slow.ends() == b""
    await assert_serves(gateway)


@with_settings(header_timeout_s=0.1)
async def test_a_connection_that_asks_nothing_is_closed_without_a_word(gateway: RunningGateway) -> None:
    async with connected(gateway) as silent:
        assert await silent.ends() == b""
    await assert_serves(gateway)


@with_settings(header_timeout_s=ENOUGH_S)
async def test_a_later_request_of_a_connection_has_no_more_time_for_its_head(gateway: RunningGateway) -> None:
    async with connected(gateway) as slow:
        for _ in range(2):
            slow.send(GET + "\r\n")
            assert await slow.status() == 200
        slow.send(GET)
        assert await slow.status() == 408
        assert await slow.ends() == b""


@with_settings(header_timeout_s=ENOUGH_S)
async def test_a_stranger_s_body_after_the_refusal_holds_no_connection(gateway: RunningGateway) -> None:
    async with connected(gateway) as stranger:
        stranger.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        assert await stranger.status() == 401
        stranger.send("{")
        assert await stranger.ends() == b""


@with_settings(header_timeout_s=ENOUGH_S)
async def test_a_long_answer_outlives_the_time_for_headers(gateway: RunningGateway) -> None:
    go_on = asyncio.Event()

    async def script(_: tokenizer_pb2.TextRequest, send: Callable[[Delta], None]) -> None:
        await go_on.wait()
        send(last("lo", usage=usage(1)))

    gateway.tokenizer.script = script
    async with connected(gateway) as client, connected(gateway) as silent:
        body = json.dumps({"prompt": "Hi"})
        client.send(f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}")
        assert await silent.ends() == b""  # so that time has passed
        go_on.set()
        assert await client.status() == 200


@with_settings(keep_alive_s=1)
async def test_an_idle_connection_is_closed(gateway: RunningGateway) -> None:
    async with connected(gateway) as idle:
        idle.send(GET + "\r\n")
        assert await idle.status() == 200
        assert await idle.ends() == b""


@with_settings(body_timeout_s=0.1)
async def test_a_body_that_does_not_come_is_ended_with_a_408(gateway: RunningGateway) -> None:
    async with connected(gateway) as slow:
        slow.send(f'{HEAD}Content-Length: 1000\r\n\r\n{{"prompt": ')
        assert await slow.status() == 408
        assert await slow.ends() == b""
    assert gateway.tokenizer.requests == []
    await assert_serves(gateway)


async def test_of_a_hundred_megabytes_the_gateway_reads_a_part_and_closes(gateway: RunningGateway) -> None:
    async with connected(gateway) as client:
        client.send(f"{HEAD}Content-Length: 100000000\r\n\r\n")
        sent = 0
        try:
            while sent < 100_000_000:
                client.send("x" * 1_000_000)
                await client.writer.drain()
                sent += 1_000_000
        except ConnectionError:
            pass
        assert sent < 100_000_000
    await assert_serves(gateway)


HIDDEN = "GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + API_KEY + "\r\n\r\n"


@pytest.mark.parametrize(
    "lengths",
    [
        f"Content-Length: 5\r\nContent-Length: {5 + len(HIDDEN)}\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Content-Length: +5\r\n",
        "Content-Length : 5\r\n",
    ],
)
async def test_two_opinions_of_where_a_request_ends_hide_no_second_one(
    gateway: RunningGateway, lengths: str
) -> None:
    async with connected(gateway) as client:
        client.send(f"{HEAD}{lengths}\r\n0\r\n\r\n{HIDDEN}")
        answer = await client.ends()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1


@with_settings(max_header_bytes=2048)
@pytest.mark.parametrize(
    "head",
    [
        GET + "".join(f"X-{number}: {'y' * 100}\r\n" for number in range(50)) + "\r\n",
        GET + f"X: {'y' * 4000}\r\n\r\n",
        f"GET /{'y' * 4000} HTTP/1.1\r\nHost: x\r\n\r\n",
        GET + "X: " + "y" * 1_000_000,  # and no end of it
        "GET /" + "y" * 1_000_000,
    ],
    ids=["many headers", "long header", "long path", "endless header", "endless path"],
)
async def test_heads_over_the_limit_are_refused(gateway: RunningGateway, head: str) -> None:
    async with connected(gateway) as client:
        client.send(head)
        answer = await client.ends()
        # Where there is more than the server reads, the answer may be lost to the reset of the connection.
        assert not answer or answer.startswith(b"HTTP/1.1 431 ")
        assert answer or len(head) > 100_000
    await assert_serves(gateway)


async def test_more_headers_than_the_limit_are_refused(gateway: RunningGateway) -> None:
    async with connected(gateway) as client:
        client.send(GET + "".join(f"X-{number}: y\r\n" for number in range(98)) + "\r\n")
        assert await client.status() == 200
        client.send(GET + "".join(f"X-{number}: y\r\n" for number in range(99)) + "\r\n")
        assert await client.status() == 431
        assert json.loads(client.body)["error"]["message"] == "the request has more than 100 headers"
        assert await client.ends() == b""


async def test_ordinary_requests_in_one_write_are_all_answered(gateway: RunningGateway) -> None:
    body = json.dumps({"prompt": "x" * 100_000})
    async with connected(gateway) as client:
        client.send(f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}{GET}\r\n{GET}\r\n")
        assert [await client.status() for _ in range(3)] == [200, 200, 200]


@with_settings(max_connections=5)
async def test_connections_over_the_limit_are_refused_and_those_there_are_served(
    gateway: RunningGateway,
) -> None:
    async with connected(gateway) as first:
        first.send(GET + "\r\n")
        assert await first.status() == 200
        refused = 0
        more = [await connected(gateway).__aenter__() for _ in range(20)]
        for connection in more:
            connection.send("GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        for connection in more:
            refused += not (await connection.ends()).startswith(b"HTTP/1.1 200 ")
            connection.writer.close()
        assert refused >= 16
        first.send(GET + "\r\n")
        assert await first.status() == 200
    await assert_serves(gateway)


@with_settings(max_requests=2)
async def test_requests_over_the_limit_get_a_429_before_their_bodies_are_read(
    gateway: RunningGateway,
) -> None:
    go_on = asyncio.Event()

    async def script(_: tokenizer_pb2.TextRequest, send: Callable[[Delta], None]) -> None:
        await go_on.wait()
        send(last("lo", usage=usage(1)))

    gateway.tokenizer.script = script
    admitted = [
        asyncio.create_task(gateway.http.post("/v1/completions", json={"prompt": "Hi"})) for _ in range(2)
    ]
    await until(lambda: len(gateway.tokenizer.requests) == 2)
    async with connected(gateway) as third:
        third.send(f"{HEAD}Content-Length: 1000\r\n\r\n")
        assert await third.status() == 429
        assert await third.ends() == b""
    assert (await gateway.http.get("/health/ready")).status_code == 200
    go_on.set()
    assert [(await task).status_code for task in admitted] == [200, 200]
    await assert_serves(gateway)


@pytest.mark.parametrize(
    ("gateway_settings", "wanted", "granted"),
    [
        ({"max_request_s": 100.0}, None, 100.0),
        ({"max_request_s": 100.0}, 500, 100.0),
        ({"max_request_s": 100.0}, 7, 7.0),
        ({"max_request_s": 0.0}, None, None),
        ({"max_request_s": 0.0}, 500, 500.0),
    ],
)
async def test_no_request_gets_more_time_than_the_limit(
    gateway: RunningGateway, wanted: float | None, granted: float | None
) -> None:
    body = {"prompt": "Hi"} | ({"timeout": wanted} if wanted else {})
    assert (await gateway.http.post("/v1/completions", json=body)).status_code == 200
    (request,) = gateway.tokenizer.requests
    assert (request.timeout_s if request.HasField("timeout_s") else None) == granted


MESSAGE = {"role": "user", "content": "a"}


@with_settings(max_messages=10)
async def test_a_chat_of_too_many_messages_is_refused_by_name(gateway: RunningGateway) -> None:
    for path in ("/v1/chat/completions", "/tokenize"):
        response = await gateway.http.post(path, json={"messages": [MESSAGE] * 11})
        assert_clear(response)
        assert response.json()["error"]["param"] == "messages"
        assert (await gateway.http.post(path, json={"messages": [MESSAGE] * 10})).status_code == 200


@pytest.mark.parametrize("number", [10**9, 2**31, 10**30])
@pytest.mark.parametrize(
    "param", ["n", "best_of", "logprobs", "max_tokens", "min_tokens", "top_k", "seed", "priority", "timeout"]
)
async def test_huge_numbers_are_refused_by_name_or_harmless(
    gateway: RunningGateway, param: str, number: int
) -> None:
    response = await gateway.http.post("/v1/completions", json={"prompt": "Hi", param: number})
    if response.status_code != 200:
        assert_clear(response)
        assert response.json()["error"]["param"] == param
    await assert_serves(gateway)


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("stop", ["x"] * 1_000_000),
        ("stop_token_ids", [1] * 1_000_000),
        ("logit_bias", {str(number): 1 for number in range(100_000)}),
        ("prompt", ["x"] * 100_000),
    ],
)
async def test_huge_lists_are_refused_by_name(gateway: RunningGateway, param: str, value: object) -> None:
    response = await gateway.http.post("/v1/completions", json={"prompt": "Hi", param: value})
    assert_clear(response)
    assert response.json()["error"]["param"] == param
    await assert_serves(gateway)
