"""The requests that have not ended, what their clients are to be told, and how their sequences end."""

from collections.abc import Iterator
from typing import NamedTuple

from quire.errors import DeadlineExceeded
from quire.v1 import scheduler_pb2, types_pb2
from scheduler_svc.core.sequence import LeaveReason, Request, Sequence, SequenceState
from scheduler_svc.core.tenants import Tenants
from scheduler_svc.core.token_batch import merge

_SMOOTHING = 0.05


class Ending(NamedTuple):
    """A sequence that ended, for metrics and traces."""

    sequence: Sequence
    finish_reason: types_pb2.FinishReason.ValueType
    usage: types_pb2.Usage


class LiveRequests:
    """Requests by client and handle."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._by_client: dict[int, dict[int, Request]] = {}
        self._updates: dict[int, list[scheduler_pb2.TokenBatch]] = {}
        self._endings: list[Ending] = []
        self.mean_output = 0.0
        """Smoothed number of tokens that sequences generate."""

    def __len__(self) -> int:
        return sum(len(handles) for handles in self._by_client.values())

    def __iter__(self) -> Iterator[Request]:
        for handles in self._by_client.values():
            yield from handles.values()

    def get(self, client: int, handle: int) -> Request | None:
        """The request under this handle, if it has not ended."""
        return self._by_client.get(client, {}).get(handle)

    def handles(self, client: int) -> list[int]:
        """A client's handles in use."""
        return list(self._by_client.get(client, ()))

    def add(self, request: Request) -> None:
        """A request is let in."""
        self._by_client.setdefault(request.client, {})[request.handle] = request
        for _ in request.sequences:
            self._tenants.enter(request.tenant)

    def forget(self, request: Request) -> None:
        """Its handle is free: it has ended, or was cancelled and ends when its rows are released."""
        handles = self._by_client.get(request.client, {})
        # A cancelled request's handle may be another's by the time its last row is released.
        if handles.get(request.handle) is request:
            del handles[request.handle]
            if not handles:
                del self._by_client[request.client]

    def end(
        self,
        sequence: Sequence,
        reason: types_pb2.FinishReason.ValueType,
        now: float,
        error: types_pb2.Error | None = None,
    ) -> None:
        """A sequence has ended, and so has its request if it was the last. Who cancelled is told nothing."""
        request = sequence.request
        sequence.state, sequence.ended_at = SequenceState.ENDED, now
        usage = sequence.usage()
        self._endings.append(Ending(sequence, reason, usage))
        self._tenants.leave(request.tenant)
        is_complete = reason in (types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_LENGTH)
        # Of what was broken off only long ones tell something: were they left out, the mean would be that of the short.
        if is_complete or sequence.num_output_tokens > self.mean_output:
            self.mean_output += _SMOOTHING * (sequence.num_output_tokens - self.mean_output)
        request.num_unfinished -= 1
        if request.num_unfinished == 0:
            self.forget(request)
        if reason == types_pb2.FINISH_REASON_CANCELLED:
            return
        end = scheduler_pb2.SequenceEnd(
            handle=request.handle, sequence=sequence.index, finish_reason=reason, usage=usage, error=error
        )
        last = sequence.token_ids[-1]
        if reason == types_pb2.FINISH_REASON_STOP and last in sequence.stop_token_ids:
            end.stop_token_id = last
        self.tell(request.client, scheduler_pb2.TokenBatch(ends=[end]))

    def end_given_up(self, sequence: Sequence, reason: LeaveReason, now: float) -> None:
        """A sequence was stopped before its output was complete, by its client or its deadline."""
        if reason is LeaveReason.EXPIRED:
            waited = "queued" if sequence.admitted_at != sequence.admitted_at else "running"
            error = DeadlineExceeded(f"the request's deadline passed while it was {waited}", param="timeout")
            self.end(sequence, types_pb2.FINISH_REASON_ERROR, now, error.to_proto())
        elif reason is LeaveReason.STOPPED:
            self.end(sequence, types_pb2.FINISH_REASON_STOP, now)
        else:
            self.end(sequence, types_pb2.FINISH_REASON_CANCELLED, now)

    # -- what the shell takes away

    def tell(self, client: int, batch: scheduler_pb2.TokenBatch) -> None:
        """Keep a batch for a client."""
        self._updates.setdefault(client, []).append(batch)

    def drop_updates(self, client: int) -> None:
        """The client is gone."""
        self._updates.pop(client, None)

    def take_updates(self) -> dict[int, scheduler_pb2.TokenBatch]:
        """What each client has to be told since the last call."""
        updates, self._updates = self._updates, {}
        return {
            client: batches[0] if len(batches) == 1 else merge(batches) for client, batches in updates.items()
        }

    def take_endings(self) -> list[Ending]:
        """Sequences that ended since the last call, in order."""
        endings, self._endings = self._endings, []
        return endings

    def check_integrity(self) -> None:
        """Assert that what is unfinished is counted."""
        for request in self:
            unfinished = [s for s in request.sequences if s.state is not SequenceState.ENDED]
            assert len(unfinished) == request.num_unfinished > 0
