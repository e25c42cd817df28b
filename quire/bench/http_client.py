"""A light HTTP client for load: it notes when bytes came, and what they say is read afterwards.

Reading JSON and SSE while the clock runs would make the client a part of what it measures. HTTP/1.1 over TCP, with
connections kept alive; no TLS.
"""

import asyncio
import re
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from quire.errors import Internal, InvalidRequest

_END_OF_CHUNKS = b"\r\n0\r\n\r\n"
_EVENT = re.compile(rb"data: (.*?)\r?\n\r?\n", re.DOTALL)
_URL = re.compile(r"http://([^/:]+)(?::(\d+))?/?$")


@dataclass
class Exchange:
    """One request and the raw response, by arrival."""

    body: bytes
    sent_s: float = 0.0
    """When it was written (perf_counter)."""
    times_s: list[float] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)
    failure: str = ""


@dataclass(frozen=True)
class Stream:
    """What a streamed completion was: arrivals that carried text, tokens by the server's count, or an error."""

    times_s: NDArray[np.float64]
    """When text came (perf_counter); several events that came at once count as one."""
    num_tokens: int
    text: str
    error: str = ""


class HttpClient:
    """Posts JSON to one path of one server, each request on a connection of its own while it lasts."""

    def __init__(self, url: str, path: str, api_key: str) -> None:
        """Raises InvalidRequest for a URL that is not http://host:port."""
        match = _URL.match(url)
        if match is None:
            raise InvalidRequest(f"{url} is not of the form http://host:port", param="url")
        self.host, self.port = match[1], int(match[2] or 80)
        self._head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nAuthorization: Bearer {api_key}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._idle: list[_Connection] = []

    async def post(self, body: bytes, *, patience_s: float | None = None) -> Exchange:
        """Send `body` and wait for the end of the response; a connection that breaks is the exchange's failure.

        With `patience_s` the client leaves after so many seconds, which is a failure too.
        """
        exchange = Exchange(body)
        exchange.sent_s = time.perf_counter()
        connection: _Connection | None = None
        patience = asyncio.timeout(patience_s)
        try:
            async with patience:
                connection = await self._connection()
                await connection.exchange(self._head, exchange)
        except OSError as error:  # a TimeoutError is one too
            if connection is not None:
                connection.close()
            left = f"the client left after {patience_s} s"
            exchange.failure = left if patience.expired() else f"{type(error).__name__}: {error}"
        else:
            if connection.is_reusable:
                self._idle.append(connection)
        return exchange

    def close(self) -> None:
        """Close the connections that are kept."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connection(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(_Connection, self.host, self.port)
        return made


class _Connection(asyncio.Protocol):
    """One exchange at a time."""

    def __init__(self) -> None:
        self.is_reusable = True
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._tail = b""

    async def exchange(self, head: bytes, exchange: Exchange) -> None:
        """Write the request; return when its response is whole. Raises ConnectionError."""
        assert self._transport is not None
        self._exchange, self._tail = exchange, b""
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(b"%b%d\r\n\r\n%b" % (head, len(exchange.body), exchange.body))
        await self._done

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        """The hot path."""
        exchange = self._exchange
        if exchange is None:
            return
        exchange.times_s.append(time.perf_counter())
        exchange.parts.append(data)
        self._tail = (self._tail + data)[-len(_END_OF_CHUNKS) :]
        if self._tail == _END_OF_CHUNKS or (len(exchange.parts) < 10 and self._is_whole(exchange)):
            self._finish(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_reusable = False
        self._finish(error or ConnectionResetError("the server closed the connection"))

    def _is_whole(self, exchange: Exchange) -> bool:
        """Whether a response of a told length has arrived: an error, which is short."""
        data = b"".join(exchange.parts)
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        return bool(end) and length is not None and len(body) >= int(length[1])

    def _finish(self, error: Exception | None) -> None:
        done, self._done, self._exchange = self._done, None, None
        if done is None or done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error if isinstance(error, OSError) else ConnectionError(str(error)))


def read_stream(exchange: Exchange) -> Stream:
    """Read a streamed `/v1/completions` response."""
    if exchange.failure:
        return _failed(exchange.failure)
    raw = b"".join(exchange.parts)
    head, _, _ = raw.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        return _failed(raw.partition(b"\r\n")[0].decode(errors="replace") + _message(raw))
    body, ends = _dechunk(raw, len(head) + 4)
    arrived = np.cumsum([len(part) for part in exchange.parts])
    times: list[float] = []
    texts: list[str] = []
    num_tokens, is_complete = 0, False
    for event in _EVENT.finditer(body):
        if event[1] == b"[DONE]":
            is_complete = True
            continue
        document = orjson.loads(event[1])
        if "error" in document:
            return _failed(str(document["error"].get("message", document["error"])))
        if document.get("usage"):
            num_tokens = document["usage"]["completion_tokens"]
        text = "".join(choice.get("text") or "" for choice in document.get("choices", ()))
        if text:
            texts.append(text)
            at = exchange.times_s[int(np.searchsorted(arrived, _raw_end(ends, event.end())))]
            if not times or at != times[-1]:
                times.append(at)
    if not is_complete:
        return _failed("the stream ended without [DONE]")
    return Stream(np.array(times), num_tokens, "".join(texts))


def _failed(why: str) -> Stream:
    return Stream(np.empty(0), 0, "", why)


def _message(raw: bytes) -> str:
    """The message of an OpenAI error body, if that is what it is."""
    try:
        return ": " + str(orjson.loads(raw.partition(b"\r\n\r\n")[2])["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""


def _dechunk(raw: bytes, at: int) -> tuple[bytes, list[tuple[int, int]]]:
    """The body of a chunked response, and for each chunk where it ends, in the body and in `raw`."""
    pieces, ends, length = [], [], 0
    while at < len(raw):
        line_end = raw.index(b"\r\n", at)
        size = int(raw[at:line_end].partition(b";")[0], 16)
        if size == 0:
            break
        at = line_end + 2 + size
        pieces.append(raw[line_end + 2 : at])
        length += size
        ends.append((length, at))
        at += 2
    return b"".join(pieces), ends


def _raw_end(ends: list[tuple[int, int]], body_end: int) -> int:
    """Where in the raw response the byte before `body_end` of the body came."""
    length, raw_end = ends[bisect_left(ends, (body_end, 0))]
    return raw_end - (length - body_end)


def read_json(exchange: Exchange) -> Any:
    """The JSON of a response of told length. Raises Internal for a failure or another status than 200."""
    raw = b"".join(exchange.parts)
    status_line, _, _ = raw.partition(b"\r\n")
    if exchange.failure or b" 200 " not in status_line:
        raise Internal(f"{exchange.failure or status_line.decode(errors='replace')}{_message(raw)}")
    return orjson.loads(raw.partition(b"\r\n\r\n")[2])
