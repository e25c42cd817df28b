"""The session with one tokenizer service, shared by all calls of this process."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import grpc
import structlog

from gateway import metrics
from quire import telemetry
from quire.errors import Internal, NotReady, QuireError, from_rpc_error
from quire.rpc.channel import open_channel
from quire.rpc.session import SessionClient
from quire.v1 import tokenizer_pb2, tokenizer_pb2_grpc, types_pb2

log = structlog.get_logger()

_MAX_HANDLE = 2**32
_UNARY_TIMEOUT_S = 60.0
_LOST = "the connection to the tokenizer service was lost; try again"


class Receiver(Protocol):
    """Where the deltas of one submitted request go."""

    def push(self, delta: tokenizer_pb2.TextDelta) -> bool:
        """Take in a delta; true when it was the request's last."""

    def fail(self, error: QuireError) -> None:
        """Nothing more will come."""


class _Live(NamedTuple):
    """A submitted request: who takes its deltas, and what a log line about it says."""

    receiver: Receiver
    request_id: str
    traceparent: str


class TokenizerClient:
    """Submits requests to one tokenizer service and hands their deltas to receivers.

    `run` keeps the session up. When it is lost, each live request ends with one retryable error.
    """

    def __init__(self, address: str, on_change: Callable[[], None]) -> None:
        self.address = address
        self._on_change = on_change
        self._channel = open_channel(address)
        self._stub: tokenizer_pb2_grpc.TokenizerAsyncStub = tokenizer_pb2_grpc.TokenizerStub(self._channel)
        self._session: SessionClient[
            tokenizer_pb2.TokenizerSessionRequest, tokenizer_pb2.TokenizerSessionResponse
        ] = SessionClient(
            f"tokenizer service {address}",
            lambda: self._stub.Session(),
            on_message=self._receive,
            on_disconnect=self._disconnected,
        )
        self._live: dict[int, _Live] = {}
        self._last_handle = 0
        self.announcement = tokenizer_pb2.TokenizerAnnouncement()

    @property
    def ready(self) -> bool:
        """Whether a request would be served."""
        return self._session.connected and self.announcement.state == types_pb2.SERVICE_STATE_READY

    @property
    def connected(self) -> bool:
        """Whether the session is up."""
        return self._session.connected

    @property
    def num_live(self) -> int:
        """Requests in progress."""
        return len(self._live)

    async def run(self) -> None:
        """Keep the session up until cancelled."""
        try:
            await self._session.run()
        finally:
            await self._channel.close()

    def submit(self, request: tokenizer_pb2.TextRequest, receiver: Receiver) -> int:
        """Send `request`; returns its handle. Raises NotReady when the service is away."""
        handle = self._last_handle = (self._last_handle + 1) % _MAX_HANDLE
        submit = tokenizer_pb2.TokenizerSessionRequest.Submit(handle=handle, request=request)
        self._session.send(tokenizer_pb2.TokenizerSessionRequest(submit=submit))
        self._live[handle] = _Live(receiver, request.request_id, request.trace.traceparent)
        return handle

    def cancel(self, handle: int) -> None:
        """Stop a request; its receiver hears nothing more. Nothing happens if it has ended."""
        if self._live.pop(handle, None) is None or not self._session.connected:
            return
        cancel = tokenizer_pb2.TokenizerSessionRequest.Cancel(handle=handle)
        self._session.send(tokenizer_pb2.TokenizerSessionRequest(cancel=cancel))

    def fail_all(self, error: QuireError) -> None:
        """End every live request with `error`."""
        for handle, request in list(self._live.items()):
            request.receiver.fail(error)
            self.cancel(handle)

    async def tokenize(self, request: tokenizer_pb2.TokenizeRequest) -> tokenizer_pb2.TokenizeResponse:
        """Text or a chat to token ids. Raises QuireError."""
        try:
            return await self._stub.Tokenize(request, timeout=_UNARY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def detokenize(self, request: tokenizer_pb2.DetokenizeRequest) -> tokenizer_pb2.DetokenizeResponse:
        """Token ids to text. Raises QuireError."""
        try:
            return await self._stub.Detokenize(request, timeout=_UNARY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    def _receive(self, message: tokenizer_pb2.TokenizerSessionResponse) -> None:
        """The hot path: one call per step of the model, with the deltas of every live request."""
        if message.HasField("announcement"):
            self.announcement = message.announcement
            self._on_change()
        live = self._live
        for delta in message.deltas:
            handle = delta.handle
            request = live.get(handle)
            if request is None:
                continue  # cancelled while the delta was on its way
            try:
                ended = request.receiver.push(delta)
            except Exception as error:  # the request fails alone; the session serves the others
                with telemetry.in_trace(types_pb2.TraceContext(traceparent=request.traceparent)):
                    log.error("delta could not be taken in", request_id=request.request_id, exc_info=error)
                request.receiver.fail(Internal("a delta could not be taken in"))
                self.cancel(handle)
                continue
            if ended:
                live.pop(handle, None)

    def _disconnected(self) -> None:
        self.announcement = tokenizer_pb2.TokenizerAnnouncement()
        live, self._live = self._live, {}
        for request in live.values():
            request.receiver.fail(NotReady(_LOST, retry_after_s=1.0))
        if live:
            metrics.requests_ended_early.labels("session_lost").inc(len(live))
        self._on_change()
