"""Reading streamed responses from what arrived when."""

import asyncio
import json
from collections.abc import AsyncIterator

import numpy as np
import pytest

from quire.bench.http_client import Exchange, HttpClient, read_json, read_stream
from quire.errors import Internal, InvalidRequest

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(text: str | None = None, completion_tokens: int = 0) -> bytes:
    choices = [] if text is None else [{"text": text}]
    usage = {"completion_tokens": completion_tokens} if completion_tokens else None
    return b"data: " + json.dumps({"choices": choices, "usage": usage}).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


DONE = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def exchange(*parts: bytes) -> Exchange:
    """Parts that arrive at 1, 2, 3 … seconds."""
    return Exchange(b"", 0.0, [float(at + 1) for at in range(len(parts))], list(parts))


def test_arrivals_with_text_are_timed_and_tokens_are_the_server_s() -> None:
    stream = read_stream(
        exchange(HEAD + chunk(event("")), chunk(event("a")), chunk(event("b")), chunk(event(None, 5)) + DONE)
    )
    assert (stream.text, stream.num_tokens, stream.error) == ("ab", 5, "")
    np.testing.assert_array_equal(stream.times_s, [2.0, 3.0])


def test_events_that_come_together_are_one_arrival() -> None:
    stream = read_stream(exchange(HEAD, chunk(event("a") + event("b")) + chunk(event("c")), DONE))
    np.testing.assert_array_equal(stream.times_s, [2.0])
    assert stream.text == "abc"


def test_an_event_counts_when_its_last_byte_has_come_wherever_it_was_cut() -> None:
    body = chunk(event("a")) + chunk(event("b")[:9]) + chunk(event("b")[9:])
    for cut in range(1, len(body)):
        stream = read_stream(exchange(HEAD + body[:cut], body[cut:] + DONE))
        assert stream.text == "ab"
        # Whole without the line's end after the chunk, which is framing.
        events_in_first = (cut >= len(chunk(event("a"))) - 2) + (cut >= len(body) - 2)
        np.testing.assert_array_equal(stream.times_s, [[2.0], [1.0, 2.0], [1.0]][events_in_first])


def test_a_stream_without_its_end_is_an_error() -> None:
    assert "DONE" in read_stream(exchange(HEAD, chunk(event("a")), b"0\r\n\r\n")).error


def test_an_error_event_is_an_error() -> None:
    data = b'data: {"error": {"message": "out of luck"}}\n\n'
    assert read_stream(exchange(HEAD, chunk(data), b"0\r\n\r\n")).error == "out of luck"


def test_a_refusal_says_its_status_and_message() -> None:
    body = b'{"error": {"message": "slow down"}}'
    refused = exchange(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    assert read_stream(refused).error == "HTTP/1.1 429 Too Many Requests: slow down"
    with pytest.raises(Internal, match="slow down"):
        read_json(refused)


@pytest.mark.parametrize("url", ["https://host", "host:80", "http://", "http://host/v1"])
def test_urls_of_another_form_are_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="http://host:port"):
        HttpClient(url, "/", "")


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A server that answers `close` by hanging up, and anything else with the number of its connection."""
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        number = connections
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if await reader.readexactly(length) == b"close":
                break
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n%d" % number)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def test_connections_are_used_again_and_a_lost_one_fails_its_request_alone(port: int) -> None:
    client = HttpClient(f"http://127.0.0.1:{port}", "/", "key")
    assert read_json(await client.post(b"x")) == 1
    assert read_json(await client.post(b"x")) == 1
    both = await asyncio.gather(client.post(b"x"), client.post(b"x"))
    assert sorted(read_json(one) for one in both) == [1, 2]
    assert "Connection" in (await client.post(b"close")).failure
    assert read_json(await client.post(b"x")) in (1, 2)
    client.close()


async def test_nobody_listening_is_a_failure_and_no_exception() -> None:
    client = HttpClient("http://127.0.0.1:1", "/", "")
    assert "refused" in (await client.post(b"x")).failure.lower()


async def test_a_client_that_leaves_closes_its_connection() -> None:
    left = asyncio.Event()

    async def half_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + chunk(event("a")))
        await reader.read()  # the body, and then the end
        left.set()
        writer.close()

    server = await asyncio.start_server(half_answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = HttpClient(f"http://127.0.0.1:{port}", "/", "key")
    answer = await client.post(b"{}", patience_s=0.2)
    assert "the client left" in answer.failure
    await asyncio.wait_for(left.wait(), 60)
    client.close()
    server.close()
