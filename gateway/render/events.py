"""Server-sent events made of ready bytes: what never changes is encoded once for a stream."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gateway import metrics
from gateway.errors import ApiError

DONE = b"data: [DONE]\n\n"
EVENT_END = b"\n\n"


class Envelope:
    """The chunks of one stream: `id`, `object`, `created`, `model` and the fingerprint around the choices."""

    def __init__(self, head: dict[str, Any], *, include_usage: bool) -> None:
        self.opening = b"data: " + orjson.dumps(head)[:-1]
        # OpenAI sends null in every chunk but the last of a stream that includes usage.
        self.closing = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def choice(self, choice: dict[str, Any], usage: dict[str, Any] | None = None) -> bytes:
        """A chunk with one choice."""
        closing = self.closing if usage is None else b',"usage":' + orjson.dumps(usage) + b"}\n\n"
        return b"".join((self.opening, b',"choices":[', orjson.dumps(choice), b"]", closing))

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The last chunk of a stream that includes usage."""
        return b"".join((self.opening, b',"choices":[],"usage":', orjson.dumps(usage), b"}\n\n"))


def error_event(error: ApiError) -> bytes:
    """The last event of a stream that failed; the status was sent long ago."""
    return b"data: " + error.body() + EVENT_END


class EventStream(StreamingResponse):
    """Sends ready-made events; `on_end` runs once, when the last was sent or the client left."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        # Proxies that buffer would hold the tokens back.
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        metrics.open_streams.inc()
        try:
            await super().__call__(scope, receive, send)
        finally:
            metrics.open_streams.dec()
            self._on_end()
