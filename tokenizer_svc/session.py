"""One gateway's session: its handles, and the deltas of a step gathered into one message."""

import asyncio
from collections.abc import AsyncIterator

import structlog

from quire import telemetry
from quire.errors import Internal, InvalidRequest, QuireError
from quire.rpc.session import Outbox
from quire.v1 import tokenizer_pb2, types_pb2
from tokenizer_svc.generation import Generation
from tokenizer_svc.live_request import DeltaSink, LiveRequest
from tokenizer_svc.schedulers import Schedulers

log = structlog.get_logger()

# Messages, one per step: a gateway that is this far behind is not coming back.
_MAX_PENDING = 4096


def _coalesce(
    messages: list[tokenizer_pb2.TokenizerSessionResponse],
) -> tokenizer_pb2.TokenizerSessionResponse:
    """One message with all deltas in order, and the newest announcement."""
    merged = messages[0]
    for message in messages[1:]:
        merged.MergeFrom(message)
    return merged


class GatewaySession:
    """Requests of one peer by handle. Belongs to the event loop."""

    def __init__(self, generation: Generation, schedulers: Schedulers) -> None:
        self.outbox: Outbox[tokenizer_pb2.TokenizerSessionResponse] = Outbox(
            _coalesce, max_pending=_MAX_PENDING
        )
        self._generation = generation
        self._schedulers = schedulers
        self._live: dict[int, LiveRequest] = {}
        self._starting: dict[int, asyncio.Task[None]] = {}
        self._message = tokenizer_pb2.TokenizerSessionResponse()

    def announce(self, announcement: tokenizer_pb2.TokenizerAnnouncement) -> None:
        """Tell the peer what this service is up to."""
        self.outbox.put(tokenizer_pb2.TokenizerSessionResponse(announcement=announcement))

    def new_delta(self, handle: int) -> DeltaSink:
        """What a request of this handle fills its deltas into."""

        def add() -> tokenizer_pb2.TextDelta:
            return self._message.deltas.add(handle=handle)

        return add

    def adopt(self, handle: int, live: LiveRequest) -> None:
        """A request has been submitted."""
        self._live[handle] = live

    def flush(self) -> None:
        """Send what the step has brought."""
        if self._message.deltas:
            self.outbox.put(self._message)
            self._message = tokenizer_pb2.TokenizerSessionResponse()
            over = [handle for handle, live in self._live.items() if live.is_over]
            for handle in over:
                del self._live[handle]

    async def read(self, requests: AsyncIterator[tokenizer_pb2.TokenizerSessionRequest]) -> None:
        """Take in what the peer sends, until it leaves."""
        async for request in requests:
            kind = request.WhichOneof("kind")
            if kind == "submit":
                self._submit(request.submit)
            elif kind == "cancel":
                self._cancel(request.cancel.handle)
        self.outbox.close()

    def close(self) -> None:
        """The peer is gone: so are its requests."""
        self.outbox.close()
        for task in self._starting.values():
            task.cancel()
        for live in self._live.values():
            self._schedulers.cancel(live)
        self._live.clear()

    def _submit(self, submit: tokenizer_pb2.TokenizerSessionRequest.Submit) -> None:
        handle = submit.handle
        if handle in self._live or handle in self._starting:
            self._refuse(handle, InvalidRequest(f"handle {handle} is in use"))
            return
        task = asyncio.create_task(self._start(handle, submit.request), name="submit")
        self._starting[handle] = task
        task.add_done_callback(lambda _: self._starting.pop(handle, None))

    async def _start(self, handle: int, request: tokenizer_pb2.TextRequest) -> None:
        with telemetry.in_trace(request.trace):
            try:
                live = await self._generation.submit(request, self.new_delta(handle))
                self.adopt(handle, live)
                if live.is_over:
                    # One that is resumed, and had come to its stop string.
                    self.flush()
            except QuireError as error:
                self._refuse(handle, error)
            except Exception as error:  # a fault of ours costs this request, not the session
                log.error("a request could not be prepared", exc_info=error)
                self._refuse(
                    handle, Internal("the request could not be prepared: an internal error, which was logged")
                )

    def _refuse(self, handle: int, error: QuireError) -> None:
        delta = self._message.deltas.add(handle=handle, finish_reason=types_pb2.FINISH_REASON_ERROR)
        delta.error.CopyFrom(error.to_proto())
        self.flush()

    def _cancel(self, handle: int) -> None:
        task = self._starting.get(handle)
        if task is not None:
            task.cancel()
        live = self._live.pop(handle, None)
        if live is not None:
            self._schedulers.cancel(live)
