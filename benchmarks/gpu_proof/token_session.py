"""A scheduler's client in token ids that submits, cancels and keeps what comes back of every sequence."""

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from quire.errors import Internal, from_proto
from quire.packing import pack_int32, unpack_float32, unpack_int32, unpack_uint32
from quire.rpc.channel import open_channel
from quire.rpc.session import SessionClient
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, types_pb2

_Request = scheduler_pb2.SchedulerSessionRequest
_Response = scheduler_pb2.SchedulerSessionResponse


@dataclass
class Output:
    """What one sequence got so far."""

    tokens: "array[int]" = field(default_factory=lambda: array("i"))
    logprobs: list[float] = field(default_factory=list)
    """Of each token, where asked for."""
    usage: types_pb2.Usage | None = None
    """Once it has ended by itself."""


@dataclass
class Live:
    """A request that was submitted; `done` is set when it has ended or was cancelled, or fails with its error."""

    outputs: list[Output]
    done: "asyncio.Future[None]"
    cancel_after: int | None = None
    """Tokens of all its sequences after which it is cancelled."""
    num_tokens: int = 0
    num_open: int = 0
    is_cancelled: bool = False


class TokenSession:
    """One session with a scheduler; requests are never submitted again, so a lost session fails them."""

    def __init__(self, address: str) -> None:
        self.model = types_pb2.ModelDescription()
        self._channel = open_channel(address)
        self._stub: scheduler_pb2_grpc.SchedulerAsyncStub = scheduler_pb2_grpc.SchedulerStub(self._channel)
        self._session: SessionClient[_Request, _Response] = SessionClient(
            f"the scheduler at {address}",
            lambda: self._stub.Session(),
            on_message=self._receive,
            on_disconnect=self._disconnected,
        )
        self._ready = asyncio.Event()
        self._live: dict[int, Live] = {}
        self._last_handle = 0
        self.late_tokens = 0
        """Tokens that came for requests after their cancellation."""

    async def run(self) -> None:
        """Keep the session up until cancelled."""
        try:
            await self._session.run()
        finally:
            await self._channel.close()

    async def ready(self) -> None:
        """Return when requests would be served; `model` is known then."""
        await self._ready.wait()

    async def status(self) -> scheduler_pb2.SchedulerStatus:
        """What the scheduler is doing."""
        return await self._stub.GetStatus(types_pb2.GetStatusRequest())

    @property
    def num_live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def submit(self, request: scheduler_pb2.TokenRequest, *, cancel_after: int | None = None) -> Live:
        """Send a request; it is cancelled when it has so many tokens, 0: at once."""
        self._last_handle += 1
        count = request.n or 1
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        live = Live([Output() for _ in range(count)], done, cancel_after, num_open=count)
        self._live[self._last_handle] = live
        self._session.send(_Request(submit=_Request.Submit(handle=self._last_handle, request=request)))
        if cancel_after == 0:
            self._cancel(self._last_handle, live)
        return live

    def cancel_all(self) -> None:
        """Cancel whatever runs."""
        for handle, live in list(self._live.items()):
            self._cancel(handle, live)

    def _cancel(self, handle: int, live: Live) -> None:
        self._session.send(_Request(cancel=_Request.Cancel(handle=handle)))
        live.is_cancelled = True
        self._end(handle, live)

    def _end(self, handle: int, live: Live) -> None:
        del self._live[handle]
        if not live.done.done():
            live.done.set_result(None)

    def _receive(self, message: _Response) -> None:
        if message.HasField("announcement") and message.announcement.state == types_pb2.SERVICE_STATE_READY:
            self.model = message.announcement.model
            self._ready.set()
        if message.HasField("batch"):
            self._take(message.batch)

    def _take(self, batch: scheduler_pb2.TokenBatch) -> None:
        handles = unpack_uint32(batch.handles).tolist()
        sequences = unpack_uint32(batch.sequences).tolist() if batch.sequences else [0] * len(handles)
        counts = unpack_uint32(batch.num_tokens).tolist() if batch.num_tokens else [1] * len(handles)
        tokens = unpack_int32(batch.token_ids).tolist()
        logprobs = {item.entry: item.logprobs for item in batch.logprobs}
        start = 0
        for entry, (handle, sequence, count) in enumerate(zip(handles, sequences, counts, strict=True)):
            live = self._live.get(handle)
            if live is None:
                self.late_tokens += count
            else:
                output = live.outputs[sequence]
                output.tokens.extend(tokens[start : start + count])
                if entry in logprobs:
                    output.logprobs += unpack_float32(logprobs[entry].token_logprobs).tolist()
                live.num_tokens += count
            start += count
        for end in batch.ends:
            self._take_end(end)
        for handle in set(handles):
            live = self._live.get(handle)
            if live is not None and live.cancel_after is not None and live.num_tokens >= live.cancel_after:
                self._cancel(handle, live)

    def _take_end(self, end: scheduler_pb2.SequenceEnd) -> None:
        live = self._live.get(end.handle)
        if live is None:
            return
        if end.HasField("error"):
            live.done.set_exception(from_proto(end.error))
            del self._live[end.handle]
            return
        live.outputs[end.sequence].usage = end.usage
        live.num_open -= 1
        if live.num_open == 0:
            self._end(end.handle, live)

    def _disconnected(self) -> None:
        live, self._live = self._live, {}
        for request in live.values():
            if not request.done.done():
                request.done.set_exception(Internal("the scheduler went away"))


def token_request(
    name: str, prompt: Sequence[int], sampling: types_pb2.SamplingParams, *, n: int = 1
) -> scheduler_pb2.TokenRequest:
    """A request of one tenant, so that all may share prefixes."""
    return scheduler_pb2.TokenRequest(
        request_id=name,
        prompt_token_ids=pack_int32(np.asarray(prompt, np.int32)),
        sampling=sampling,
        n=n,
        tenant="proof",
    )
