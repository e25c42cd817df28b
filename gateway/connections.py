"""HTTP connections with limits: how many there are, and how long and how large the head of a request may be.

uvicorn bounds none of these: its timer of idle connections starts after a response, and stops with the first byte
after it. Here, whenever nothing is being answered, a head that has begun, or the first one, must be complete in time.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway import metrics
from gateway.errors import CROWDED, HEAD_TIMEOUT, HEAD_TOO_LARGE, ApiError

# Honest clients and all the proxies before us come to some thirty.
_MAX_HEADERS = 100


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Upper bounds, of the settings of the same names."""

    max_connections: int
    max_header_bytes: int
    header_timeout_s: float


class BoundedConnection(HttpToolsProtocol):
    """One connection: uvicorn's, within `limits`; what goes beyond them is answered once and closed."""

    def __init__(self, limits: ConnectionLimits, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = False
        self._unparsed_bytes = 0
        """Bytes of an unfinished head since the read in which it began: the parser shows only whole headers."""
        self._refusal: ApiError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first head, or refuse one connection too many."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            message = f"the server has {self._limits.max_connections} connections; try again"
            self._refuse(ApiError(CROWDED, message, headers={"Retry-After": "1"}), "connections")
            return
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more is waited for."""
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what it keeps of a head that does not end is bounded too."""
        if not self._is_answering():
            self._start_head_timer()
        self._unparsed_bytes += len(data)
        super().data_received(data)
        if not self._in_head:
            self._unparsed_bytes = 0
        elif self._unparsed_bytes > self._limits.max_header_bytes and not self.transport.is_closing():
            self._refuse(self._too_large(), "header_bytes")

    def on_message_begin(self) -> None:
        """A head begins, maybe in the middle of what was read with the body before it."""
        super().on_message_begin()
        self._in_head, self._head_bytes, self._unparsed_bytes = True, 0, 0

    def on_url(self, url: bytes) -> None:
        """A part of the head."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A part of the head, or of the trailer."""
        self._count(len(name) + len(value))
        super().on_header(name, value)
        if len(self.headers) > _MAX_HEADERS:
            message = f"the request has more than {_MAX_HEADERS} headers"
            self._stop_parsing(ApiError(HEAD_TOO_LARGE, message), "headers")

    def on_headers_complete(self) -> None:
        """The head is there: from here on the application has its own limits."""
        self._in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser stopped at: one of our limits, or what is no HTTP."""
        if self._refusal is None:
            super().send_400_response(msg)
        else:
            self._write_and_close(self._refusal)

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _count(self, num_bytes: int) -> None:
        self._head_bytes += num_bytes
        if self._head_bytes > self._limits.max_header_bytes:
            self._stop_parsing(self._too_large(), "header_bytes")

    def _too_large(self) -> ApiError:
        message = f"the request's line and headers are over {self._limits.max_header_bytes} bytes"
        return ApiError(HEAD_TOO_LARGE, message)

    def _stop_parsing(self, refusal: ApiError, limit: str) -> None:
        """Raise out of the parser's callback, which ends in `send_400_response`."""
        self._refusal = refusal
        metrics.connections_refused.labels(limit).inc()
        raise httptools.HttpParserCallbackError(refusal.message)

    def _start_head_timer(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self._limits.header_timeout_s, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._in_head:
            self.transport.close()  # nothing was asked, so there is nothing to answer
        else:
            message = f"the request's headers did not arrive within {self._limits.header_timeout_s:g} s"
            self._refuse(ApiError(HEAD_TIMEOUT, message), "header_time")

    def _refuse(self, refusal: ApiError, limit: str) -> None:
        metrics.connections_refused.labels(limit).inc()
        self._write_and_close(refusal)

    def _write_and_close(self, refusal: ApiError) -> None:
        body = refusal.body()
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **refusal.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if not self._is_answering():  # words in the middle of another answer would be read as its own
            self.transport.write(STATUS_LINE[refusal.kind.status] + lines.encode() + b"\r\n" + body)
        self.transport.close()
