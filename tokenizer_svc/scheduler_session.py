"""The session with one scheduler: submits requests, hands its batches out, and says whom it lost."""

import time
from typing import Protocol

import structlog

from quire import telemetry
from quire.packing import unpack_int32, unpack_uint32
from quire.rpc.channel import open_channel
from quire.rpc.session import SessionClient
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, types_pb2
from tokenizer_svc import metrics
from tokenizer_svc.live_request import LiveRequest

log = structlog.get_logger()

_SessionRequest = scheduler_pb2.SchedulerSessionRequest


class SessionEvents(Protocol):
    """What a session's owner is told; all on the event loop."""

    def took_batch(self) -> None:
        """A message with tokens has been handed out."""

    def announced(self) -> None:
        """The scheduler's state has changed, or the session came or went."""

    def lost(self, live: LiveRequest, address: str) -> None:
        """This request is no longer the scheduler's at `address`; its tokens so far are kept."""

    def returned(self, live: LiveRequest, address: str, error: types_pb2.Error) -> None:
        """The scheduler at `address` does not go on with this request, for a reason that is its own."""

    def redirected(self, live: LiveRequest, address: str) -> None:
        """The scheduler says that another one serves this request better."""


class SchedulerSession:
    """Requests of this process at one scheduler, by handle."""

    def __init__(self, address: str, events: SessionEvents) -> None:
        self.address = address
        self.announcement = scheduler_pb2.SchedulerAnnouncement()
        self.stranded_since: float | None = None
        """When (monotonic seconds) the scheduler said that it has no worker; None while it has, or is away."""
        self._channel = open_channel(address)
        self._stub: scheduler_pb2_grpc.SchedulerAsyncStub = scheduler_pb2_grpc.SchedulerStub(self._channel)
        self._session: SessionClient[_SessionRequest, scheduler_pb2.SchedulerSessionResponse] = SessionClient(
            f"the scheduler at {address}",
            lambda: self._stub.Session(),
            on_message=self._receive,
            on_disconnect=self._disconnected,
        )
        self._events = events
        self._live: dict[int, LiveRequest] = {}
        self._handles: dict[LiveRequest, int] = {}
        self._last_handle = 0

    @property
    def connected(self) -> bool:
        """Whether the session is up."""
        return self._session.connected

    @property
    def ready(self) -> bool:
        """Whether the scheduler would take a request."""
        return self._session.connected and self.announcement.state == types_pb2.SERVICE_STATE_READY

    @property
    def num_live(self) -> int:
        """Requests in progress here."""
        return len(self._live)

    async def run(self) -> None:
        """Keep the session up until cancelled."""
        try:
            await self._session.run()
        finally:
            await self._channel.close()

    def submit(self, live: LiveRequest, request: scheduler_pb2.TokenRequest) -> None:
        """Send a request, new or resumed. Raises NotReady when the session is down."""
        handle = (self._last_handle + 1) % 2**32
        self._session.send(_SessionRequest(submit=_SessionRequest.Submit(handle=handle, request=request)))
        self._last_handle = handle
        self._live[handle] = live
        self._handles[live] = handle
        for text in live.sequences:
            if text.has_ended:
                finish = _SessionRequest.Finish(handle=handle, sequence=text.index)
                self._session.send(_SessionRequest(finish=finish))

    def take_back(self) -> list[LiveRequest]:
        """Take every request off the scheduler; returns those that have to go on elsewhere."""
        taken = list(self._live.values())
        for live in taken:
            self.cancel(live)
            live.end_stopped()
        return [live for live in taken if not live.is_over]

    def cancel(self, live: LiveRequest) -> bool:
        """Stop a request; false if it is not here."""
        handle = self._forget(live)
        if handle is not None and self._session.connected:
            self._session.send(_SessionRequest(cancel=_SessionRequest.Cancel(handle=handle)))
        return handle is not None

    # -- the session

    def _receive(self, message: scheduler_pb2.SchedulerSessionResponse) -> None:
        if message.HasField("announcement"):
            self.announcement = message.announcement
            self._session.merges = message.announcement.takes_more
            is_stranded = message.announcement.state == types_pb2.SERVICE_STATE_STARTING
            self.stranded_since = (self.stranded_since or time.monotonic()) if is_stranded else None
            self._events.announced()
        if message.HasField("batch"):
            self._take_batch(message.batch)
            self._events.took_batch()
        for redirect in message.redirects:
            live = self._live.get(redirect.handle)
            if live is not None:
                self._forget(live)
                self._events.redirected(live, redirect.address)

    def _take_batch(self, batch: scheduler_pb2.TokenBatch) -> None:
        """The hot path: every sequence's tokens of a step."""
        handles = unpack_uint32(batch.handles).tolist()
        tokens = unpack_int32(batch.token_ids).tolist()
        sequences = unpack_uint32(batch.sequences).tolist() if batch.sequences else [0] * len(handles)
        counts = unpack_uint32(batch.num_tokens).tolist() if batch.num_tokens else None
        logprobs = {item.entry: item.logprobs for item in batch.logprobs} if batch.logprobs else {}
        # A stop token is known as such only with the sequence's end, which follows its last entry.
        ending = {(end.handle, end.sequence) for end in batch.ends} if batch.ends else ()
        kept: dict[tuple[int, int], list[tuple[list[int], types_pb2.Logprobs | None]]] = {}
        metrics.tokens_out.inc(len(tokens))
        start = 0
        for entry, (handle, sequence) in enumerate(zip(handles, sequences, strict=True)):
            count = 1 if counts is None else counts[entry]
            own = tokens[start : start + count]
            start += count
            live = self._live.get(handle)
            if live is None:
                continue
            if ending and (handle, sequence) in ending:
                kept.setdefault((handle, sequence), []).append((own, logprobs.get(entry)))
                continue
            self._push(handle, live, sequence, own, logprobs.get(entry))
        for end in batch.ends:
            self._take_end(end, kept.get((end.handle, end.sequence), []))

    def _push(
        self,
        handle: int,
        live: LiveRequest,
        sequence: int,
        tokens: list[int],
        logprobs: types_pb2.Logprobs | None,
    ) -> None:
        try:
            found_stop = live.push(sequence, tokens, logprobs)
        except Exception as error:  # this request fails alone, the others' tokens are in the same message
            self._poisoned(live, error)
            return
        if found_stop:
            self._session.send(
                _SessionRequest(finish=_SessionRequest.Finish(handle=handle, sequence=sequence))
            )

    def _take_end(
        self, end: scheduler_pb2.SequenceEnd, parts: list[tuple[list[int], types_pb2.Logprobs | None]]
    ) -> None:
        live = self._live.get(end.handle)
        if live is None:
            return
        try:
            if _is_passing(end.error, live):
                self.cancel(live)
                live.end_stopped()
                if not live.is_over:
                    self._events.returned(live, self.address, end.error)
                return
            if end.finish_reason == types_pb2.FINISH_REASON_ERROR:
                live.fail(end.error)
                if len(live.sequences) > 1:
                    self._session.send(_SessionRequest(cancel=_SessionRequest.Cancel(handle=end.handle)))
            else:
                for tokens, logprobs in parts[:-1]:
                    live.push(end.sequence, tokens, logprobs)
                live.end(end, *(parts[-1] if parts else ([], None)))
        except Exception as error:  # as in _push
            self._poisoned(live, error)
            return
        if live.is_over:
            self._forget(live)

    def _poisoned(self, live: LiveRequest, error: Exception) -> None:
        with telemetry.in_trace(live.token_request.trace):
            log.error("a request's tokens could not be turned into text", exc_info=error)
        handle = self._handles.get(live)
        problem = types_pb2.Error(
            code=types_pb2.ERROR_CODE_INTERNAL, message="the tokens could not be detokenized"
        )
        live.fail(problem)
        self._forget(live)
        if handle is not None and self._session.connected:
            self._session.send(_SessionRequest(cancel=_SessionRequest.Cancel(handle=handle)))

    def _disconnected(self) -> None:
        self.announcement = scheduler_pb2.SchedulerAnnouncement()
        self.stranded_since = None
        lost = list(self._live.values())
        self._live.clear()
        self._handles.clear()
        if lost:
            log.warning("a scheduler is away", address=self.address, requests=len(lost))
        for live in lost:
            live.end_stopped()
            if not live.is_over:
                self._events.lost(live, self.address)
        self._events.announced()

    def _forget(self, live: LiveRequest) -> int | None:
        handle = self._handles.pop(live, None)
        if handle is not None:
            del self._live[handle]
        return handle


def _is_passing(error: types_pb2.Error, live: LiveRequest) -> bool:
    """Whether another scheduler may go on with the request, or the same one later."""
    if error.code == types_pb2.ERROR_CODE_RESOURCE_EXHAUSTED:
        # It was let in once, and its stream has begun.
        return live.has_tokens
    return error.code == types_pb2.ERROR_CODE_UNAVAILABLE
