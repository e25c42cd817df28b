"""The session with a tokenizer service, without HTTP."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gateway.live_text import LiveText
from gateway.tokenizer_client import TokenizerClient
from quire.errors import Internal, QuireError
from quire.v1 import tokenizer_pb2, types_pb2
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.traced_logs import TRACE_ID, TRACEPARENT, traced_logs
from tests.support.until import until


class Collector:
    """Takes deltas in, or cannot."""

    def __init__(self, *, broken: bool = False) -> None:
        self.text = ""
        self.errors: list[QuireError] = []
        self._broken = broken

    def push(self, delta: tokenizer_pb2.TextDelta) -> bool:
        """True when it was the last."""
        if self._broken:
            raise ValueError("a bug")
        self.text += delta.text
        return bool(delta.finish_reason)

    def fail(self, error: QuireError) -> None:
        """Nothing more comes."""
        self.errors.append(error)


@pytest.fixture
async def client(tokenizer: FakeTokenizer) -> AsyncIterator[TokenizerClient]:
    """Connected, to a service that is ready."""
    found = TokenizerClient(tokenizer.address, on_change=lambda _: None, on_loss=lambda _: None)
    session = asyncio.create_task(found.run())
    await until(lambda: found.ready)
    yield found
    session.cancel()
    await asyncio.gather(session, return_exceptions=True)


def live(name: str, receiver: Collector) -> LiveText:
    trace = types_pb2.TraceContext(traceparent=TRACEPARENT)
    request = tokenizer_pb2.TextRequest(request_id=name, text="Hi", n=1, stream=True, trace=trace)
    return LiveText(request, receiver, types_pb2.ModelDescription())


async def test_a_request_whose_deltas_cannot_be_taken_in_fails_alone_and_the_log_names_it(
    client: TokenizerClient,
) -> None:
    broken, sound = Collector(broken=True), Collector()
    with traced_logs() as logs:
        client.submit(live("broken", broken))
        client.submit(live("sound", sound))
        await until(lambda: not client.num_live)
    assert [type(error) for error in broken.errors] == [Internal]
    assert (sound.text, sound.errors) == ("Hello there!", [])
    (entry,) = [entry for entry in logs.entries if entry["event"] == "delta could not be taken in"]
    assert (entry["request_id"], entry["trace_id"]) == ("broken", TRACE_ID)
