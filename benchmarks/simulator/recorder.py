"""What clients see, request by request and token by token, in columns."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulator.traces import Trace
from quire.errors import QuireError
from quire.packing import unpack_int32, unpack_uint32
from quire.v1 import scheduler_pb2, types_pb2
from scheduler_svc.core.live_requests import Ending


class Outcome(IntEnum):
    """How far a request has come."""

    NOT_SENT = 0
    """Its conversation has not come to it, or never did because an earlier request of it failed."""
    RUNNING = 1
    DONE = 2
    REFUSED = 3
    """At once, by `add`."""
    EXPIRED = 4
    """Its deadline passed after it was let in."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The tokens of one message: `counts[i]` tokens for `requests[i]`, [n]."""

    at: float
    requests: NDArray[np.intp]
    counts: NDArray[np.int64]
    intervals_s: NDArray[np.float64]
    """Seconds since the request's last message with tokens; NaN for its first."""


class Recorder:
    """Columns by request number, which is a turn's place in the trace; and every delivery of tokens.

    Request r is turn r - first_turns[c] of conversation c.
    """

    def __init__(self, trace: Trace) -> None:
        lengths = [len(conversation.turns) for conversation in trace.conversations]
        self.first_turns = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        """[conversations + 1]"""
        self.num_requests = int(self.first_turns[-1])
        self.tenants, self.tenant = _numbered([each.tenant for each in trace.conversations], lengths)
        self.groups, self.group = _numbered([each.group for each in trace.conversations], lengths)
        self.outcome = np.full(self.num_requests, Outcome.NOT_SENT, np.int8)
        self.sent_at = np.full(self.num_requests, np.nan)
        self.first_token_at = np.full(self.num_requests, np.nan)
        self.last_token_at = np.full(self.num_requests, np.nan)
        self.ended_at = np.full(self.num_requests, np.nan)
        self.predicted_ttft_s = np.full(self.num_requests, np.nan)
        self.retry_after_s = np.full(self.num_requests, np.nan)
        self.prompt_tokens = np.zeros(self.num_requests, np.int64)
        self.cached_tokens = np.zeros(self.num_requests, np.int64)
        self.computed_tokens = np.zeros(self.num_requests, np.int64)
        self.preemptions = np.zeros(self.num_requests, np.int64)
        self.output_tokens = np.zeros(self.num_requests, np.int64)
        """Tokens delivered."""
        self.deliveries: list[Delivery] = []

    def sent(self, request: int, prompt_tokens: int, now: float) -> None:
        """A client asks."""
        self.outcome[request] = Outcome.RUNNING
        self.sent_at[request] = now
        self.prompt_tokens[request] = prompt_tokens

    def refused(self, request: int, error: QuireError, now: float) -> None:
        """The answer is no."""
        self.outcome[request] = Outcome.REFUSED
        self.ended_at[request] = now
        if error.retry_after_s is not None:
            self.retry_after_s[request] = error.retry_after_s

    def delivered(self, batch: scheduler_pb2.TokenBatch, now: float) -> None:
        """A message with tokens has come; its handles are request numbers."""
        requests = unpack_uint32(batch.handles).astype(np.intp)
        if len(requests) == 0:
            return
        if batch.num_tokens:
            counts = unpack_uint32(batch.num_tokens).astype(np.int64)
        else:
            counts = np.ones(len(requests), np.int64)
        assert int(counts.sum()) == len(unpack_int32(batch.token_ids)), "counts and tokens differ"
        requests, entries = np.unique(requests, return_inverse=True)
        counts = np.bincount(entries, counts).astype(np.int64)
        assert bool((self.outcome[requests] == Outcome.RUNNING).all()), "tokens for a request that has ended"
        intervals_s = now - self.last_token_at[requests]
        self.first_token_at[requests[np.isnan(intervals_s)]] = now
        self.last_token_at[requests] = now
        self.output_tokens[requests] += counts
        self.deliveries.append(Delivery(now, requests, counts, intervals_s))

    def ended(self, ending: Ending, now: float) -> None:
        """The scheduler is done with a request."""
        asked, usage = ending.sequence.request, ending.usage
        request = asked.handle
        assert self.outcome[request] == Outcome.RUNNING, f"request {request} has ended twice"
        complete = ending.finish_reason in (types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_LENGTH)
        self.outcome[request] = Outcome.DONE if complete else Outcome.EXPIRED
        self.ended_at[request] = now
        self.cached_tokens[request] = usage.cached_tokens
        self.computed_tokens[request] = usage.computed_tokens
        self.preemptions[request] = usage.preemptions
        assert usage.completion_tokens == self.output_tokens[request], f"request {request} has lost tokens"
        if asked.predicted_ttft_s > 0.0:
            self.predicted_ttft_s[request] = asked.predicted_ttft_s


def _numbered(names: list[str], lengths: list[int]) -> tuple[list[str], NDArray[np.intp]]:
    """The distinct names, sorted, and the number of each conversation's for each of its requests."""
    distinct = sorted(set(names))
    by_name = {name: number for number, name in enumerate(distinct)}
    return distinct, np.repeat(np.asarray([by_name[name] for name in names], np.intp), lengths)
