"""The session with the scheduler: submits requests, hands its batches out, and survives its loss.

While the scheduler is away, live requests are kept with their tokens so far. When one that is READY is back they
are submitted again and go on from there; after `resume_s` seconds they end with one retryable error.
"""

import asyncio
from collections.abc import Callable

import structlog

from quire.errors import NotReady, QuireError
from quire.packing import unpack_int32, unpack_uint32
from quire.rpc.channel import open_channel
from quire.rpc.session import SessionClient
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, types_pb2
from tokenizer_svc import metrics
from tokenizer_svc.live_request import LiveRequest

log = structlog.get_logger()

_AWAY = "the scheduler is away; try again"
_NO_WORKER = "no worker is ready; try again"
_SessionRequest = scheduler_pb2.SchedulerSessionRequest


class SchedulerClient:
    """`on_batch` runs after each message with tokens, `on_announcement` after each change of the scheduler's state."""

    def __init__(
        self,
        address: str,
        *,
        resume_s: float,
        on_batch: Callable[[], None],
        on_announcement: Callable[[], None],
    ) -> None:
        self._channel = open_channel(address)
        self._stub: scheduler_pb2_grpc.SchedulerAsyncStub = scheduler_pb2_grpc.SchedulerStub(self._channel)
        self._session: SessionClient[_SessionRequest, scheduler_pb2.SchedulerSessionResponse] = SessionClient(
            "the scheduler",
            lambda: self._stub.Session(),
            on_message=self._receive,
            on_disconnect=self._disconnected,
        )
        self._resume_s = resume_s
        self._on_batch = on_batch
        self._on_announcement = on_announcement
        self._live: dict[int, LiveRequest] = {}
        self._handles: dict[LiveRequest, int] = {}
        self._last_handle = 0
        self._unsubmitted: set[int] = set()
        """Handles that the scheduler of this session does not know yet."""
        self._giving_up: asyncio.TimerHandle | None = None
        self.announcement = scheduler_pb2.SchedulerAnnouncement()

    @property
    def ready(self) -> bool:
        """Whether the scheduler would take a request."""
        return self._session.connected and self.announcement.state == types_pb2.SERVICE_STATE_READY

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

    def submit(self, live: LiveRequest) -> None:
        """Send a new request. Raises NotReady when the scheduler would not take it."""
        if not self.ready:
            raise NotReady(_NO_WORKER if self._session.connected else _AWAY, retry_after_s=1.0)
        self._last_handle = handle = (self._last_handle + 1) % 2**32
        submit = _SessionRequest.Submit(handle=handle, request=live.token_request)
        self._session.send(_SessionRequest(submit=submit))
        self._live[handle] = live
        self._handles[live] = handle

    def cancel(self, live: LiveRequest) -> None:
        """Stop a request; nothing happens if it is over."""
        handle = self._forget(live)
        live.close()
        if handle is not None and self._session.connected:
            self._session.send(_SessionRequest(cancel=_SessionRequest.Cancel(handle=handle)))

    def fail_all(self, error: QuireError) -> None:
        """End every live request with `error`."""
        for live in list(self._live.values()):
            self._fail(live, error)
        self._on_batch()

    # -- the session

    def _receive(self, message: scheduler_pb2.SchedulerSessionResponse) -> None:
        if message.HasField("announcement"):
            self.announcement = message.announcement
            if self.ready:
                self._resubmit()
            self._on_announcement()
        if message.HasField("batch"):
            self._take_batch(message.batch)
            self._on_batch()

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
        for live in list(self._live.values()):
            live.end_stopped()
            if live.is_over:
                self._forget(live)
        self._unsubmitted = set(self._live)
        if self._live:
            log.warning("the scheduler is away", requests=len(self._live), resume_s=self._resume_s)
            self._giving_up = asyncio.get_running_loop().call_later(self._resume_s, self._give_up)
        self._on_batch()
        self._on_announcement()

    def _give_up(self) -> None:
        error = NotReady("the scheduler was lost and did not come back in time; try again", retry_after_s=5.0)
        given_up, self._unsubmitted = self._unsubmitted, set()
        for handle in given_up:
            if (live := self._live.get(handle)) is not None:
                self._fail(live, error)
        self._on_batch()

    def _resubmit(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
        for handle in sorted(self._unsubmitted):
            live = self._live.get(handle)
            if live is None:
                continue
            submit = _SessionRequest.Submit(handle=handle, request=live.resumed_request())
            self._session.send(_SessionRequest(submit=submit))
            for text in live.sequences:
                if text.has_ended:
                    finish = _SessionRequest.Finish(handle=handle, sequence=text.index)
                    self._session.send(_SessionRequest(finish=finish))
            metrics.requests_resumed.inc()
        self._unsubmitted.clear()

    def _fail(self, live: LiveRequest, error: QuireError) -> None:
        live.fail(error.to_proto())
        self._forget(live)

    def _forget(self, live: LiveRequest) -> int | None:
        handle = self._handles.pop(live, None)
        if handle is not None:
            del self._live[handle]
            self._unsubmitted.discard(handle)
        return handle
