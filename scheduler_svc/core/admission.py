"""Whether a request is let in: bounds on the queue and on the wait, and a deadline that can be met.

The time to the first token is predicted from what is ahead (`prediction`), what waits for a row included: prompt
positions by the measured speed of prefill, and, where a row has to come free first, sequences by the measured rate
at which rows do.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from quire.errors import Overloaded
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.pace import tokens_per_s
from scheduler_svc.core.prediction import first_token_s, uncached
from scheduler_svc.core.queue import WaitingQueue
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.sequence import Request
from scheduler_svc.core.tenants import Tenants

# What is let in and then ends at its deadline has cost others their time. While there is more to do than there is time
# for, it costs nothing to let in only what has time to spare; an answer of unknown length is often twice the mean.
_ROOM = 1.25
_ROOM_FOR_UNKNOWN_LENGTH = 2.0
_MIN_RETRY_S = 1.0
_MAX_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is ahead of a new request, and how fast it drains."""

    waiting_sequences: int
    waiting_tokens: int
    """Prompt positions to compute of all that wait for a row."""
    own_waiting_tokens: int
    """Those of the request's tenant."""
    waiting_short_tokens: int
    """Those of prompts that are short, if the request is too: long ones do not hold it up; else those of all."""
    uncached: list[int]
    """Those of the request's own sequences, on the replica that has most of them cached."""
    placed_s: float
    """Seconds to the first token if nothing waited, 0 while unknown."""
    share: float
    """The tenant's weight over the weights of all that are active, itself included."""
    rows_free: int
    tokens_per_s: float
    """Prompt positions per second of all replicas, 0 while unknown."""
    releases_per_s: float
    """Rows coming free per second, 0 while unknown."""
    token_s: float
    """Seconds from one token of a sequence to the next, 0 while unknown."""

    @classmethod
    def of(
        cls,
        request: Request,
        queue: WaitingQueue,
        replicas: Iterable[Replica],
        tenants: Tenants,
        mean_output: float,
        now: float,
    ) -> "Backlog":
        """What is ahead of this request, which has just come; `mean_output`: tokens that sequences generate."""
        connected = [replica for replica in replicas if replica.connected and not replica.draining]
        is_shared, tenant = tenants.are_several(now), request.tenant
        share = tenant.weight / (tenants.active_weight() + (0.0 if tenant.num_active else tenant.weight))
        own = [uncached(request, replica, queue) for replica in connected]
        uncached_here = min(own, key=sum, default=[len(s.token_ids) for s in request.sequences])
        is_short = any(sum(uncached_here) <= replica.limits.short_prompt_tokens for replica in connected)
        return cls(
            waiting_sequences=len(queue),
            waiting_tokens=queue.num_tokens,
            own_waiting_tokens=tenant.num_waiting_tokens,
            waiting_short_tokens=queue.num_short_tokens if is_short else queue.num_tokens,
            uncached=uncached_here,
            placed_s=min(
                (
                    first_token_s(tenant, sum(counts), replica, share, is_shared=is_shared, now=now)
                    for replica, counts in zip(connected, own, strict=True)
                ),
                default=0.0,
            ),
            share=share,
            rows_free=sum(max(0, replica.num_rows_free) for replica in connected),
            tokens_per_s=sum(tokens_per_s(replica, is_shared=is_shared) for replica in connected),
            releases_per_s=sum(_releases_per_s(replica, mean_output) for replica in connected),
            token_s=max((replica.speed.token_s for replica in connected), default=0.0),
        )

    def ttft_s(self) -> float:
        """Predicted seconds to the first token; 0: unknown."""
        if self.placed_s <= 0.0:
            return 0.0
        waiting = min(
            2 * self.waiting_short_tokens, self.waiting_tokens, self.own_waiting_tokens / self.share
        )
        return max(self.placed_s + self.drain_s(waiting), self._row_s() + self.token_s)

    def _row_s(self) -> float:
        """Seconds until a row is free for it."""
        if self.rows_free > self.waiting_sequences or self.releases_per_s <= 0.0:
            return 0.0
        ahead = self.waiting_sequences
        if self.waiting_tokens:
            ahead = min(ahead, ceil(ahead * self.own_waiting_tokens / self.waiting_tokens / self.share))
        return (ahead + 1 - min(self.rows_free, ahead)) / self.releases_per_s

    @property
    def begins_at_once(self) -> bool:
        """Whether nothing stands between the request and its rows."""
        return not self.waiting_sequences and self.rows_free >= len(self.uncached)

    def drain_s(self, num_tokens: float) -> float:
        """Seconds until `num_tokens` of what waits have gone."""
        return num_tokens / self.tokens_per_s if self.tokens_per_s > 0.0 else 0.0


def admit(
    backlog: Backlog,
    limits: Limits,
    *,
    output_tokens: float,
    is_length_known: bool,
    timeout_s: float | None,
) -> float:
    """Let a request in, and return its predicted TTFT in seconds (0: unknown), or raise Overloaded.

    `output_tokens`: how many it will generate, or likely will. An empty queue takes any size.
    """
    predicted_s = backlog.ttft_s()
    if timeout_s is not None:
        decode_s = max(0.0, output_tokens - 1) * backlog.token_s
        if backlog.begins_at_once:
            # It takes nobody's place: an answer that may be short is worth trying.
            whole_s = predicted_s + (decode_s if is_length_known else 0.0)
        else:
            whole_s = (predicted_s + decode_s) * (_ROOM if is_length_known else _ROOM_FOR_UNKNOWN_LENGTH)
        if whole_s > timeout_s:
            ahead = f", behind {backlog.waiting_sequences} others" if backlog.waiting_sequences else ""
            raise Overloaded(
                f"it could take {whole_s:.2g} s (the first token {predicted_s:.2g} s{ahead}), "
                f"longer than the timeout of {timeout_s:g} s",
                retry_after_s=_retry_after(whole_s - timeout_s),
            )
    if not backlog.waiting_sequences:
        return predicted_s
    too_many = backlog.waiting_sequences + len(backlog.uncached) - limits.max_queue_sequences
    excess = backlog.waiting_tokens + sum(backlog.uncached) - limits.max_queue_tokens
    if too_many > 0:
        what = f"{backlog.waiting_sequences} sequences wait, of at most {limits.max_queue_sequences}"
        mean_tokens = backlog.waiting_tokens / backlog.waiting_sequences
        drain_s = max(
            backlog.drain_s(ceil(too_many * mean_tokens)),
            too_many / backlog.releases_per_s if backlog.releases_per_s > 0.0 else 0.0,
        )
    elif excess > 0:
        what = f"{backlog.waiting_tokens} tokens wait, of at most {limits.max_queue_tokens}"
        drain_s = backlog.drain_s(excess)
    elif 0.0 < limits.max_wait_s < predicted_s:
        what = f"the first token would take about {predicted_s:.2g} s, of at most {limits.max_wait_s:g} s"
        drain_s = predicted_s - limits.max_wait_s
    else:
        return predicted_s
    raise Overloaded(f"the queue is full: {what}", retry_after_s=_retry_after(drain_s))


def _releases_per_s(replica: Replica, mean_output: float) -> float:
    """Rows that come free per second: as measured, or else as rows that decode to the mean length would."""
    speed = replica.speed
    if speed.releases_per_s > 0.0:
        return speed.releases_per_s
    whole_s = mean_output * speed.decode_step_s
    return replica.num_rows_taken / whole_s if whole_s > 0.0 else 0.0


def _retry_after(seconds: float) -> float:
    return min(max(float(ceil(seconds)), _MIN_RETRY_S), _MAX_RETRY_S)
