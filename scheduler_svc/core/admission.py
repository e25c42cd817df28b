"""Whether a request is let in: bounds on the queue, and a deadline that can be met.

The time to the first token is predicted from what is ahead and how fast it drains: prompt positions by the
measured speed of prefill, and, where a row has to come free first, sequences by the measured rate at which rows
do. Under fair queueing a tenant waits for its own backlog at its share of the speed, or for everybody's at the
whole speed, whichever is less.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from quire.errors import Overloaded
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.queue import WaitingQueue
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.tenants import Tenant, Tenants

_MIN_RETRY_S = 1.0
_MAX_RETRY_S = 60.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is ahead of a new request, and how fast it drains."""

    waiting_sequences: int
    waiting_tokens: int
    """Prompt positions of all that wait for a row."""
    own_waiting_tokens: int
    """Those of the request's tenant."""
    placed_tokens: int
    """Prompt positions of sequences on rows still to compute."""
    share: float
    """The tenant's weight over the weights of all that are active, itself included."""
    rows_free: int
    tokens_per_s: float
    """Prompt positions per second of all replicas, 0 while unknown."""
    releases_per_s: float
    """Rows coming free per second, 0 while unknown."""
    in_flight_s: float
    """Seconds that the commands in flight take, of the replica that is soonest through with them."""
    step_s: float
    """Seconds of a step that only decodes."""

    @classmethod
    def of(
        cls,
        queue: WaitingQueue,
        replicas: Iterable[Replica],
        tenants: Tenants,
        tenant: Tenant,
        *,
        is_shared: bool,
    ) -> "Backlog":
        """What is ahead of a new request of this tenant."""
        connected = [replica for replica in replicas if replica.connected]
        weight = tenants.active_weight() + (0.0 if tenant.num_active else tenant.weight)
        return cls(
            waiting_sequences=len(queue),
            waiting_tokens=queue.num_tokens,
            own_waiting_tokens=tenant.num_waiting_tokens,
            placed_tokens=sum(replica.load.backlog for replica in connected),
            share=tenant.weight / weight,
            rows_free=sum(max(0, replica.num_rows_free) for replica in connected),
            tokens_per_s=sum(replica.tokens_per_s(is_shared=is_shared) for replica in connected),
            releases_per_s=sum(replica.speed.releases_per_s for replica in connected),
            in_flight_s=min((replica.in_flight_s for replica in connected), default=0.0),
            step_s=max((replica.speed.decode_step_s for replica in connected), default=0.0),
        )

    def tokens_ahead(self) -> float:
        """Positions that are computed before the request's own."""
        return self.placed_tokens + min(self.waiting_tokens, self.own_waiting_tokens / self.share)

    def ttft_s(self, num_tokens: int) -> float:
        """Predicted seconds to the first token of a request with this many positions to compute; 0: unknown."""
        if self.tokens_per_s <= 0.0:
            return 0.0
        compute_s = (self.tokens_ahead() + num_tokens) / self.tokens_per_s
        return self.in_flight_s + max(compute_s, self._row_s()) + self.step_s

    def _row_s(self) -> float:
        """Seconds until a row is free for it."""
        if self.rows_free > self.waiting_sequences or self.releases_per_s <= 0.0:
            return 0.0
        ahead = self.waiting_sequences
        if self.waiting_tokens:
            ahead = min(ahead, ceil(ahead * self.own_waiting_tokens / self.waiting_tokens / self.share))
        return (ahead + 1 - min(self.rows_free, ahead)) / self.releases_per_s

    def drain_s(self, num_tokens: int) -> float:
        """Seconds until `num_tokens` of what waits have gone."""
        return num_tokens / self.tokens_per_s if self.tokens_per_s > 0.0 else 0.0


def admit(
    backlog: Backlog,
    limits: Limits,
    *,
    num_sequences: int,
    num_tokens: int,
    output_tokens: float,
    timeout_s: float | None,
) -> float:
    """Let a request in, and return its predicted TTFT in seconds (0: unknown), or raise Overloaded.

    `num_tokens`: prompt positions of its sequences that are not cached; `output_tokens`: how many it will likely
    generate. An empty queue takes any size.
    """
    predicted_s = backlog.ttft_s(num_tokens)
    whole_s = predicted_s + max(0.0, output_tokens - 1) * backlog.step_s
    if timeout_s is not None and whole_s > timeout_s:
        raise Overloaded(
            f"it would take about {whole_s:.1f} s (the first token {predicted_s:.1f} s), longer than the timeout of "
            f"{timeout_s:g} s",
            retry_after_s=_retry_after(whole_s - timeout_s),
        )
    if not backlog.waiting_sequences:
        return predicted_s
    too_many = backlog.waiting_sequences + num_sequences - limits.max_queue_sequences
    excess = backlog.waiting_tokens + num_tokens - limits.max_queue_tokens
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
    else:
        return predicted_s
    raise Overloaded(f"the queue is full: {what}", retry_after_s=_retry_after(drain_s))


def _retry_after(seconds: float) -> float:
    return min(max(float(ceil(seconds)), _MIN_RETRY_S), _MAX_RETRY_S)
