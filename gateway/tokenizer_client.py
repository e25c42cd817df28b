"""The session with one tokenizer service, shared by all calls of this process."""

from collections.abc import Callable, Sequence

import grpc
import structlog

from gateway.live_text import LiveText
from quire import telemetry
from quire.errors import Internal, QuireError, from_rpc_error
from quire.rpc.channel import open_channel
from quire.rpc.session import SessionClient
from quire.v1 import tokenizer_pb2, tokenizer_pb2_grpc, types_pb2

log = structlog.get_logger()

_MAX_HANDLE = 2**32
_UNARY_TIMEOUT_S = 60.0


class TokenizerClient:
    """Submits requests to one tokenizer service and hands their deltas to receivers.

    `run` keeps the session up. `on_change` hears when its announcement or its session changed. When the session is
    lost, `on_loss` gets the requests that were live.
    """

    def __init__(
        self,
        address: str,
        *,
        on_change: Callable[["TokenizerClient"], None],
        on_loss: Callable[[Sequence[LiveText]], None],
    ) -> None:
        self.address = address
        self._on_change = on_change
        self._on_loss = on_loss
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
        self._live: dict[int, LiveText] = {}
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

    def submit(self, live: LiveText) -> None:
        """Send a request, new or resumed. Raises NotReady when the service is away."""
        handle = self._last_handle = (self._last_handle + 1) % _MAX_HANDLE
        submit = tokenizer_pb2.TokenizerSessionRequest.Submit(handle=handle, request=live.next_request())
        self._session.send(tokenizer_pb2.TokenizerSessionRequest(submit=submit))
        self._live[handle] = live
        live.home, live.handle, live.model = self, handle, self.announcement.model

    def cancel(self, live: LiveText) -> None:
        """See `Home`."""
        if self._live.pop(live.handle, None) is None or not self._session.connected:
            return
        cancel = tokenizer_pb2.TokenizerSessionRequest.Cancel(handle=live.handle)
        self._session.send(tokenizer_pb2.TokenizerSessionRequest(cancel=cancel))

    def fail_all(self, error: QuireError) -> None:
        """End every live request with `error`."""
        for live in list(self._live.values()):
            live.cancel()
            live.receiver.fail(error)

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
            self._on_change(self)
        requests = self._live
        for delta in message.deltas:
            live = requests.get(delta.handle)
            if live is None:
                continue  # cancelled while the delta was on its way
            try:
                live.note(delta)
                ended = live.receiver.push(delta)
            except Exception as error:  # the request fails alone; the session serves the others
                request = live.request
                with telemetry.in_trace(request.trace):
                    log.error("delta could not be taken in", request_id=request.request_id, exc_info=error)
                live.receiver.fail(Internal("a delta could not be taken in"))
                live.cancel()
                continue
            if ended:
                live.home = None
                requests.pop(delta.handle, None)

    def _disconnected(self) -> None:
        self.announcement = tokenizer_pb2.TokenizerAnnouncement()
        live, self._live = self._live, {}
        self._on_change(self)
        if live:
            log.warning("a tokenizer service is away", address=self.address, requests=len(live))
            self._on_loss(list(live.values()))
