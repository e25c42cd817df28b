"""From a parsed request to the HTTP response: the part that chat and plain completions share."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from gateway.answer import ChoiceDelta
from gateway.calls import call_of
from gateway.errors import describe
from gateway.generation import Generation
from gateway.limits import Limits
from gateway.pool import TokenizerPool, fingerprint
from gateway.render.events import DONE, EventStream, error_event
from gateway.rounds import WriteRounds
from gateway.usage import UsageTotals
from quire import telemetry
from quire.errors import Cancelled, InvalidRequest, QuireError
from quire.v1 import tokenizer_pb2

T = TypeVar("T")


class Renderer(Protocol):
    """Turns an answer into OpenAI's JSON."""

    def whole(self, deltas: Sequence[ChoiceDelta]) -> bytes:
        """The body of the response."""

    def events(self, deltas: Sequence[ChoiceDelta]) -> bytes:
        """Chunks for what is new, as one write."""

    def last_event(self) -> bytes:
        """What comes before `[DONE]`."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What routes need to answer requests."""

    pool: TokenizerPool
    limits: Limits
    max_buffered_bytes: int
    rounds: WriteRounds = field(default_factory=WriteRounds)

    async def answer(
        self,
        request: Request,
        model: str | None,
        prefix: str,
        text_requests: Sequence[tokenizer_pb2.TextRequest],
        renderer: Callable[[dict[str, Any], UsageTotals], Renderer],
    ) -> Response:
        """Submit `text_requests` and answer with JSON or a stream, as they ask.

        `prefix` begins the completion's id. Raises QuireError, also for a stream that fails before its first
        token: only after that has its status been sent.
        """
        created = int(time.time())
        generation = self._submit(request, model, prefix, text_requests)
        streaming = False
        try:
            coming = generation.next() if generation.streaming else generation.whole()
            deltas = await while_connected(request, coming)
            # Not before: one that had to wait for a service may be served with other weights than the last ones.
            head = {
                "id": generation.completion_id,
                "created": created,
                "model": generation.model.name,
                "system_fingerprint": fingerprint(generation.model),
            }
            rendered = renderer(head, generation.usage)
            if not generation.streaming:
                return Response(rendered.whole(deltas), media_type="application/json")
            streaming = True
            return EventStream(_events(generation, rendered, deltas), generation.close)
        finally:
            if not streaming:
                generation.close()

    def _submit(
        self,
        request: Request,
        model: str | None,
        prefix: str,
        text_requests: Sequence[tokenizer_pb2.TextRequest],
    ) -> Generation:
        call = call_of(request.scope)
        for text_request in text_requests:
            text_request.priority = _priority(text_request.priority, call.min_priority)
            if self.limits.max_request_s:
                wanted_s = text_request.timeout_s if text_request.HasField("timeout_s") else inf
                text_request.timeout_s = min(wanted_s, self.limits.max_request_s)
        generation = Generation(
            self.pool.submit,
            self.pool.find_model(model),
            call,
            f"{prefix}-{uuid.uuid4().hex}",
            text_requests,
            self.rounds,
            self.max_buffered_bytes,
        )
        if telemetry.enabled():
            parent = telemetry.trace_context(call.span)
            telemetry.start_span("receive", parent, start_time_ns=call.started_ns).end()
        return generation


def _priority(wanted: int, lowest: int) -> int:
    """The priority that a request gets; 0 is what it has that asked for none. Raises InvalidRequest."""
    if wanted and wanted < lowest:
        raise InvalidRequest(f"this API key may ask for a priority of {lowest} or more", param="priority")
    return max(wanted, lowest)


async def _events(
    generation: Generation, renderer: Renderer, batch: list[ChoiceDelta]
) -> AsyncIterator[bytes]:
    try:
        while batch:
            events = renderer.events(batch)
            if events:
                yield events
            batch = await generation.next()
    except QuireError as error:
        yield error_event(describe(error))
        return
    yield renderer.last_event() + DONE


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, unless the client leaves first: then cancel it and raise Cancelled."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_client_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Cancelled("the client left")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _client_left(request: Request) -> None:
    # The body was read before; the only thing that can still come is the end.
    while (await request.receive())["type"] != "http.disconnect":
        pass
