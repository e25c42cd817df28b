"""Multiplexed sessions: one bidirectional stream per pair of processes, shared by all of their requests."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

import grpc
import structlog

from quire.errors import NotReady, Overloaded
from quire.rpc.cancellation import raise_if_cancelled

Request = TypeVar("Request")
Response = TypeVar("Response")
Message = TypeVar("Message")

log = structlog.get_logger()

_FIRST_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 1.0
# Beyond them a message's bytes cost as much as its being one, and its reader does nothing else for long.
_MERGED_BYTES, _MOST_MERGED = 2**16, 32


class SessionClient(Generic[Request, Response]):
    """The client end: keeps one stream open for ever, and says when it was lost.

    `on_message` and `on_disconnect` run on the event loop and must not block. After `on_disconnect` nothing
    of the old stream arrives any more; what was sent on it may or may not have been received.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], grpc.aio.StreamStreamCall[Request, Response]],
        *,
        on_message: Callable[[Response], None],
        on_disconnect: Callable[[], None],
    ) -> None:
        self._name = name
        self._connect = connect
        self._on_message = on_message
        self._on_disconnect = on_disconnect
        self._outbox: deque[Request] = deque()
        self._wake = asyncio.Event()
        self._last_end = ""
        self.connected = False
        self.merges = False
        """Whether the peer has said that it reads what is in a request's `more`: its owner sets this."""

    def send(self, request: Request) -> None:
        """Queue a message for the stream. Raises NotReady when the peer is away."""
        if not self.connected:
            raise NotReady(f"{self._name} is not reachable", retry_after_s=1.0)
        self._outbox.append(request)
        self._wake.set()

    async def run(self) -> None:
        """Connect, read, and connect again after a loss, until cancelled."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                if await self._run_once():
                    backoff_s = _FIRST_BACKOFF_S
            except grpc.aio.AioRpcError as error:
                raise_if_cancelled()
                self._log_end(error)
            raise_if_cancelled()
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    async def _run_once(self) -> bool:
        """One life of the stream; true if anything arrived on it."""
        call = self._connect()
        writer: asyncio.Task[None] | None = None
        try:
            # The peer speaks first; until then nothing shows that the stream exists.
            async for message in call:
                if not self.connected:
                    self.connected, self._last_end = True, ""
                    writer = asyncio.create_task(self._write(call), name=f"{self._name} session writer")
                self._on_message(message)
            return self.connected
        finally:
            if writer is not None:
                writer.cancel()
            call.cancel()
            self._outbox.clear()
            self.merges = False
            if self.connected:
                self.connected = False
                self._on_disconnect()

    def _log_end(self, error: grpc.aio.AioRpcError) -> None:
        """One line for a reason, not one for each attempt: a wrong certificate fails every second for ever."""
        end = f"{error.code().name}: {error.details()}"
        say = log.debug if end == self._last_end else log.info
        self._last_end = end
        say("session ended", peer=self._name, code=error.code().name, details=error.details())

    async def _write(self, call: grpc.aio.StreamStreamCall[Request, Response]) -> None:
        while True:
            # The first after a pause goes alone: what it begins is not to wait until the others are read.
            merges = False
            while self._outbox:
                message = self._outbox.popleft()
                if merges:
                    self._merge_into(message)
                merges = self.merges
                try:
                    await call.write(message)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # the reader sees the same end and reports it
            self._wake.clear()
            await self._wake.wait()

    def _merge_into(self, message: Any) -> None:
        """Add to a message, which is about to be sent, as many of those that wait as go well with it."""
        pending: deque[Any] = self._outbox
        room = _MERGED_BYTES - message.ByteSize()
        while pending and len(message.more) < _MOST_MERGED and (room := room - pending[0].ByteSize()) >= 0:
            message.more.append(pending.popleft())


class Outbox(Generic[Message]):
    """The server end's sending side: what a session still has to send, merged while the peer is slow."""

    def __init__(self, coalesce: Callable[[list[Message]], Message], *, max_pending: int) -> None:
        self._coalesce = coalesce
        self._max_pending = max_pending
        self._pending: list[Message] = []
        self._wake = asyncio.Event()
        self._closed = False
        self._overflowed = False

    def put(self, message: Message) -> None:
        """Add a message. A peer that lets more than `max_pending` pile up loses its session."""
        if self._closed:
            return
        if len(self._pending) >= self._max_pending:
            self._overflowed = True
            self.close()
            return
        self._pending.append(message)
        self._wake.set()

    def close(self) -> None:
        """End the iteration after what is pending."""
        self._closed = True
        self._wake.set()

    async def __aiter__(self) -> AsyncIterator[Message]:
        """Yield messages, several merged into one when they piled up. Raises Overloaded after an overflow."""
        while True:
            if self._overflowed:
                raise Overloaded("the session's peer does not read what it is sent")
            if self._pending:
                pending, self._pending = self._pending, []
                yield pending[0] if len(pending) == 1 else self._coalesce(pending)
                continue
            if self._closed:
                return
            self._wake.clear()
            await self._wake.wait()
