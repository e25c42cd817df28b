"""The client of offline measurements: token ids into a scheduler's session, and what came back when."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quire.errors import Internal, from_proto
from quire.packing import pack_int32, unpack_uint32
from quire.rpc.channel import open_channel
from quire.rpc.session import SessionClient
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, types_pb2

_SessionRequest = scheduler_pb2.SchedulerSessionRequest
_SessionResponse = scheduler_pb2.SchedulerSessionResponse


@dataclass(frozen=True)
class Arrivals:
    """Tokens as they came: one entry per message and request, in order."""

    times_s: NDArray[np.float64]
    """Of each entry, since the first request was submitted."""
    requests: NDArray[np.int64]
    """Of each entry, which request of the workload."""
    num_tokens: NDArray[np.int64]
    """Of each entry."""
    total_s: float
    """From the first request to the last token."""
    usages: list[types_pb2.Usage]
    """Of each request, as the scheduler counted."""

    def first_token_s(self) -> NDArray[np.float64]:
        """Seconds to each request's first token."""
        found = np.full(len(self.usages), np.inf)
        np.minimum.at(found, self.requests, self.times_s)
        return found

    def last_token_s(self) -> NDArray[np.float64]:
        """Seconds to each request's last token."""
        found = np.zeros(len(self.usages))
        np.maximum.at(found, self.requests, self.times_s)
        return found

    def gaps_s(self) -> NDArray[np.float64]:
        """Seconds between one message with tokens of a request and its next one."""
        order = np.argsort(self.requests, kind="stable")
        times, requests = self.times_s[order], self.requests[order]
        gaps: NDArray[np.float64] = np.diff(times)[np.diff(requests) == 0]
        return gaps


class TokenClient:
    """One session. Messages are only kept while the clock runs, and looked at afterwards."""

    def __init__(self, address: str) -> None:
        self.model = types_pb2.ModelDescription()
        self._channel = open_channel(address)
        self._stub: scheduler_pb2_grpc.SchedulerAsyncStub = scheduler_pb2_grpc.SchedulerStub(self._channel)
        self._session: SessionClient[_SessionRequest, _SessionResponse] = SessionClient(
            f"the scheduler at {address}",
            lambda: self._stub.Session(),
            on_message=self._receive,
            on_disconnect=self._disconnected,
        )
        self._ready = asyncio.Event()
        self._finished = asyncio.Event()
        self._batches: list[tuple[float, scheduler_pb2.TokenBatch]] = []
        self._num_open = 0
        self._lost = False

    async def run(self) -> None:
        """Keep the session up until cancelled."""
        try:
            await self._session.run()
        finally:
            await self._channel.close()

    async def ready(self) -> None:
        """Return when requests would be served; `model` is known then."""
        await self._ready.wait()

    async def generate(self, requests: Sequence[scheduler_pb2.TokenRequest]) -> Arrivals:
        """Submit all at once, and wait for the last token of the last.

        Raises the error of a request that failed, and Internal where tokens are missing.
        """
        self._batches, self._num_open, self._lost = [], len(requests), False
        self._finished.clear()
        started = time.perf_counter()
        for handle, request in enumerate(requests):
            submit = _SessionRequest.Submit(handle=handle, request=request)
            self._session.send(_SessionRequest(submit=submit))
        await self._finished.wait()
        if self._lost:
            raise Internal("the scheduler went away during the measurement")
        return collect(self._batches, started, requests)

    def _receive(self, message: _SessionResponse) -> None:
        now = time.perf_counter()
        if message.HasField("announcement"):
            self._session.merges = message.announcement.takes_more
            if message.announcement.state == types_pb2.SERVICE_STATE_READY:
                self.model = message.announcement.model
                self._ready.set()
        if message.HasField("batch"):
            self._batches.append((now, message.batch))
            self._num_open -= len(message.batch.ends)
            if self._num_open <= 0:
                self._finished.set()

    def _disconnected(self) -> None:
        self._lost = True
        self._finished.set()


def token_request(
    name: str, prompt: Sequence[int], sampling: types_pb2.SamplingParams, *, cache_salt: str
) -> scheduler_pb2.TokenRequest:
    """One request of a measurement; requests of another salt share no cached prefix with it."""
    return scheduler_pb2.TokenRequest(
        request_id=name,
        prompt_token_ids=pack_int32(prompt),
        sampling=sampling,
        tenant="bench",
        cache_salt=cache_salt,
    )


def collect(
    batches: list[tuple[float, scheduler_pb2.TokenBatch]],
    started: float,
    requests: Sequence[scheduler_pb2.TokenRequest],
) -> Arrivals:
    """Arrivals of messages and times. Raises a request's own error, and Internal where tokens are missing."""
    usages = [types_pb2.Usage() for _ in requests]
    times, handles, counts = [], [], []
    for at, batch in batches:
        for end in batch.ends:
            if end.HasField("error"):
                raise from_proto(end.error)
            usages[end.handle] = end.usage
        entries = unpack_uint32(batch.handles)
        handles.append(entries)
        counts.append(
            unpack_uint32(batch.num_tokens) if batch.num_tokens else np.ones(len(entries), np.uint32)
        )
        times.append(np.full(len(entries), at - started))
    arrivals = Arrivals(
        times_s=np.concatenate(times),
        requests=np.concatenate(handles).astype(np.int64),
        num_tokens=np.concatenate(counts).astype(np.int64),
        total_s=batches[-1][0] - started,
        usages=usages,
    )
    received = np.bincount(arrivals.requests, weights=arrivals.num_tokens, minlength=len(requests))
    for request, usage, count in zip(requests, usages, received.tolist(), strict=True):
        if not count == usage.completion_tokens == request.sampling.max_tokens:
            raise Internal(
                f"{request.request_id} got {count:.0f} tokens, {usage.completion_tokens} by its ledger, "
                f"of {request.sampling.max_tokens}"
            )
    return arrivals
