"""What happens to streams when clients leave or dawdle, services go away, or the gateway is told to stop."""

import asyncio
import json
from collections.abc import Callable
from random import Random

import openai
import pytest

from gateway.server import GatewayService
from gateway.settings import GatewaySettings
from quire.service import Shutdown
from quire.v1 import tokenizer_pb2, types_pb2
from tests.gateway.conftest import API_KEY, RunningGateway, events_of
from tests.support.fake_tokenizer import Delta, FakeTokenizer, last, usage
from tests.support.until import until

Send = Callable[[Delta], None]
PROMPT = {"prompt": "Hi", "stream": True}


async def forever(_: tokenizer_pb2.TextRequest, send: Send) -> None:
    """One token, then silence."""
    send(Delta(text="Hel", num_tokens=1))
    await asyncio.Event().wait()


async def silence(_: tokenizer_pb2.TextRequest, send: Send) -> None:
    """Not one token."""
    await asyncio.Event().wait()


async def connect(
    gateway: RunningGateway, body: dict[str, object], path: str = "/v1/completions"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request by hand, so that the test decides what is read and when the socket closes."""
    host, _, port = gateway.service.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    content = json.dumps(body).encode()
    writer.write(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        + content
    )
    return reader, writer


def dechunked(answer: bytes) -> bytes:
    """The body of an HTTP answer in chunked encoding."""
    rest, pieces = answer.partition(b"\r\n\r\n")[2], []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        pieces.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    return b"".join(pieces)


async def test_leaving_a_stream_cancels_it(gateway: RunningGateway) -> None:
    gateway.tokenizer.script = forever
    reader, writer = await connect(gateway, PROMPT)
    await reader.readuntil(b"Hel")
    writer.close()
    cancelled = await asyncio.wait_for(gateway.tokenizer.cancelled.get(), 60)
    assert cancelled == gateway.tokenizer.requests[0].request_id


@pytest.mark.parametrize("stream", [True, False])
async def test_leaving_before_the_first_token_cancels(gateway: RunningGateway, stream: bool) -> None:
    gateway.tokenizer.script = silence
    _, writer = await connect(gateway, {"prompt": ["a", "b"], "stream": stream})
    requests = [await gateway.tokenizer.submitted.get() for _ in range(2)]
    writer.close()
    cancelled = {await asyncio.wait_for(gateway.tokenizer.cancelled.get(), 60) for _ in range(2)}
    assert cancelled == {request.request_id for request in requests}


async def test_leaving_by_reset_while_text_flows_cancels(gateway: RunningGateway) -> None:
    async def flood(_: tokenizer_pb2.TextRequest, send: Send) -> None:
        while True:
            send(Delta(text="x" * 100, num_tokens=1))
            await asyncio.sleep(0)

    gateway.tokenizer.script = flood
    reader, writer = await connect(gateway, PROMPT)
    await reader.readuntil(b"xxx")
    writer.transport.abort()
    await asyncio.wait_for(gateway.tokenizer.cancelled.get(), 60)


async def test_clients_that_leave_at_any_moment_leave_nothing_behind(gateway: RunningGateway) -> None:
    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        for _ in range(40):
            send(Delta(text="x", num_tokens=1))
            await asyncio.sleep(0)
        send(last())

    gateway.tokenizer.script = script
    random = Random(1)

    async def visit(turns: int, stream: bool) -> None:
        _, writer = await connect(gateway, {"prompt": ["a", "b"], "stream": stream})
        for _ in range(turns):
            await asyncio.sleep(0)
        if random.random() < 0.5:
            writer.transport.abort()
        writer.close()

    await asyncio.gather(*(visit(random.randrange(300), random.random() < 0.7) for _ in range(200)))
    await until(lambda: gateway.service.pool.num_live() == 0)
    whole = await gateway.http.post("/v1/completions", json={"prompt": "Hi"})
    assert whole.status_code == 200


async def test_a_finished_request_is_not_cancelled(gateway: RunningGateway) -> None:
    for stream in (True, False):
        response = await gateway.http.post("/v1/completions", json={"prompt": "Hi", "stream": stream})
        assert response.status_code == 200
    assert gateway.tokenizer.cancelled.empty()


async def test_tokens_of_a_slow_client_share_chunks(gateway: RunningGateway) -> None:
    num_tokens = 4000
    large: list[str] = []
    sent = asyncio.Event()

    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        stuck_for = 0
        while stuck_for < 3:  # once, it may only have been slow
            large.append("x" * 100_000)
            send(Delta(text=large[-1], num_tokens=1))
            await until(lambda: num_deltas(gateway, request.request_id) == len(large))
            await until(lambda: not waits_for_its_turn(gateway))
            stuck_for = stuck_for + 1 if is_stuck(gateway) else 0
        for index in range(num_tokens):
            send(Delta(text=f"{index} ", num_tokens=1))
        await until(lambda: num_deltas(gateway, request.request_id) == len(large) + num_tokens)
        send(last(usage=usage(len(large) + num_tokens + 1)))
        sent.set()

    gateway.tokenizer.script = script
    reader, writer = await connect(gateway, PROMPT)
    await sent.wait()
    # Nothing was read so far, and the socket takes no more; another client is served as ever.
    assert (await gateway.http.get("/v1/models")).status_code == 200
    answer = b""
    while b"data: [DONE]" not in answer[-64:]:
        answer += await reader.read(65536)
    writer.close()
    events = [line[6:] for line in dechunked(answer).split(b"\n") if line.startswith(b"data: {")]
    text = "".join(choice["text"] for event in events for choice in json.loads(event)["choices"])
    assert text == "".join(large) + "".join(f"{index} " for index in range(num_tokens))
    assert len(events) < len(large) + num_tokens / 4


class TestSmallBuffer:
    """With little room for a client that does not read."""

    @pytest.fixture
    def gateway_settings(self) -> dict[str, object]:
        return {"max_buffered_bytes": 4096}

    async def test_a_client_that_does_not_read_is_cancelled_alone(self, gateway: RunningGateway) -> None:
        async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
            if request.text == "other":
                send(last("fine"))
                return
            while True:
                send(Delta(text="x" * 10_000, num_tokens=1))
                await asyncio.sleep(0)

        gateway.tokenizer.script = script
        reader, writer = await connect(gateway, PROMPT)
        cancelled = await asyncio.wait_for(gateway.tokenizer.cancelled.get(), 60)
        assert cancelled == gateway.tokenizer.requests[0].request_id
        other = await gateway.http.post("/v1/completions", json={"prompt": "other"})
        assert other.json()["choices"][0]["text"] == "fine"
        # Should it read again after all, it learns why.
        *_, end = (await reader.read(2**26)).split(b"data: ") or [b""]
        while b"0\r\n\r\n" not in end:
            end = end[-1000:] + await reader.read(2**20)
        assert b"more slowly" in end
        writer.close()


async def test_sixty_three_others_are_served_while_the_buffer_of_one_that_does_not_read_is_full(
    gateway: RunningGateway,
) -> None:
    go_on = asyncio.Event()

    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        if request.text == "slow":
            while not is_stuck(gateway) or go_on.is_set():
                taken = num_deltas(gateway, request.request_id)
                send(Delta(text="x" * 100_000, num_tokens=1))
                # One at a time: what has not gone out when the socket is full would end the stream too early.
                while num_deltas(gateway, request.request_id) == taken or waits_for_its_turn(gateway):
                    await asyncio.sleep(0)
            await go_on.wait()
            await script(request, send)
        for _ in range(100):
            send(Delta(text="y", num_tokens=1))
            await asyncio.sleep(0)
        send(last("z", usage=usage(101)))

    gateway.tokenizer.script = script
    reader, writer = await connect(gateway, {"prompt": "slow", "stream": True})
    slow = await gateway.tokenizer.submitted.get()
    await until(lambda: is_stuck(gateway))
    others = await asyncio.gather(
        *(events_of(gateway, "/v1/completions", {"prompt": "other"}) for _ in range(63))
    )
    for events in others:
        assert events.pop() == "[DONE]"
        assert "".join(json.loads(event)["choices"][0]["text"] for event in events) == "y" * 100 + "z"
    assert is_stuck(gateway)
    assert gateway.tokenizer.cancelled.empty()
    go_on.set()
    assert await asyncio.wait_for(gateway.tokenizer.cancelled.get(), 60) == slow.request_id
    end = b""
    while not end.endswith(b"0\r\n\r\n"):
        end = end[-1000:] + await reader.read(2**20)
    assert b"more slowly" in end
    writer.close()


def num_deltas(gateway: RunningGateway, request_id: str) -> int:
    """How many the gateway has taken of a request; -1 if it knows it no more."""
    (client,) = gateway.service.pool._clients.values()
    found = (live.receiver for live in client._live.values() if live.request.request_id == request_id)
    return next((receiver._answer.num_deltas for receiver in found), -1)  # type: ignore[attr-defined]


def waits_for_its_turn(gateway: RunningGateway) -> bool:
    """Whether what has come of some request is still to be written, by a stream that could."""
    (client,) = gateway.service.pool._clients.values()
    answers = [live.receiver._answer for live in client._live.values()]  # type: ignore[attr-defined]
    return any(answer._pending for answer in answers) and not is_stuck(gateway)


def is_stuck(gateway: RunningGateway) -> bool:
    """Whether a client's socket takes no more."""
    assert gateway.service._server is not None
    return any(
        connection.flow.write_paused for connection in gateway.service._server.server_state.connections
    )


async def test_readiness_follows_the_tokenizer(gateway: RunningGateway) -> None:
    gateway.tokenizer.announce(types_pb2.SERVICE_STATE_STARTING, 0.25)
    await until(lambda: not gateway.service.readiness().ready)
    for path in ("/health/ready", "/health"):
        response = await gateway.http.get(path)
        assert response.status_code == 503
        assert response.json() == {"status": "not ready", "reason": "the model is loading", "progress": 0.25}
    assert (await gateway.http.get("/health/live")).status_code == 200
    gateway.tokenizer.announce(types_pb2.SERVICE_STATE_STARTING, 0.0)
    await until(lambda: gateway.service.readiness().reason == "no scheduler has a worker")
    refused = await gateway.http.post("/v1/completions", json={"prompt": "Hi"})
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["message"].endswith("no scheduler has a worker; try again")
    gateway.tokenizer.announce(types_pb2.SERVICE_STATE_READY)
    await until(lambda: gateway.service.readiness().ready)
    assert (await gateway.http.get("/health/ready")).status_code == 200


async def test_drain_lets_streams_finish_and_refuses_new_ones(gateway: RunningGateway) -> None:
    go_on = asyncio.Event()

    async def script(_: tokenizer_pb2.TextRequest, send: Send) -> None:
        send(Delta(text="Hel", num_tokens=1))
        await go_on.wait()
        send(last("lo", usage=usage(2)))

    gateway.tokenizer.script = script
    stream = await gateway.sdk.completions.create(model="tiny", prompt="Hi", stream=True)
    chunks = aiter(stream)
    text = (await anext(chunks)).choices[0].text
    draining = asyncio.create_task(gateway.service.drain())
    await until(lambda: not gateway.service.readiness().ready)
    ready = await gateway.http.get("/health/ready")
    assert (ready.status_code, ready.json()["reason"]) == (503, "shutting down")
    refused = await gateway.http.post("/v1/completions", json={"prompt": "Hi"})
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert not draining.done()
    go_on.set()
    text += "".join([chunk.choices[0].text async for chunk in chunks])
    assert text == "Hello"
    await asyncio.wait_for(draining, 60)


async def test_stop_ends_what_still_runs_with_an_error(gateway: RunningGateway) -> None:
    gateway.tokenizer.script = forever
    stream = await gateway.sdk.completions.create(model="tiny", prompt="Hi", stream=True)
    chunks = aiter(stream)
    await anext(chunks)
    stopping = asyncio.create_task(gateway.service.stop())
    with pytest.raises(openai.APIError, match="shutting down"):
        await anext(chunks)
    await asyncio.wait_for(stopping, 60)
    assert not gateway.tokenizer.cancelled.empty()


async def test_each_request_goes_to_the_least_loaded_tokenizer(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    fakes = [FakeTokenizer(), FakeTokenizer(), FakeTokenizer(model="other")]
    for fake in fakes:
        fake.script = silence
        await fake.start()
    settings = GatewaySettings(
        listen="127.0.0.1:0",
        tokenizers=(*(fake.address for fake in fakes), "127.0.0.1:1"),
        api_key=API_KEY,  # type: ignore[arg-type]
        keys_file=str(tmp_path_factory.mktemp("keys") / "keys.json"),
    )
    service = GatewayService(settings, Shutdown())
    await service.start()
    async with openai.AsyncOpenAI(base_url=f"http://{service.address}/v1", api_key=API_KEY) as sdk:
        await until(lambda: len(service.pool.models()) == 2 and service.pool.num_ready() == 3)
        asks = [
            asyncio.create_task(sdk.completions.create(model="tiny", prompt="Hi", max_tokens=1))
            for _ in range(6)
        ]
        await until(lambda: sum(len(fake.requests) for fake in fakes) == 6)
        assert [len(fake.requests) for fake in fakes] == [3, 3, 0]
        listed = await sdk.models.list()
        assert {model.id for model in listed.data} == {"tiny", "other"}
        for ask in asks:
            ask.cancel()
        await asyncio.gather(*asks, return_exceptions=True)
    await service.stop()
    for fake in fakes:
        await fake.stop()
