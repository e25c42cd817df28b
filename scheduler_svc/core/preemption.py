"""Who loses its row when there are too few rows or blocks.

Always the lowest priority first; within it the youngest. Between tenants of one priority the one served most, by
its virtual counter, gives way. Preempting costs the victim a recomputation, mostly from the prefix cache, and
nothing else: its tokens so far stay.
"""

from collections.abc import Callable, Iterable

from scheduler_svc.core.sequence import Sequence
from scheduler_svc.core.tenants import Tenant


def victim_of_shortage(running: Iterable[Sequence]) -> Sequence | None:
    """The one to preempt among those that run when blocks run out; None if it would be the last.

    One always stays, and gets on: it fits the pool alone, and every step without a preemption brings each row a
    token, so there is no livelock.
    """
    candidates = list(running)
    if len(candidates) <= 1:
        return None
    return max(candidates, key=lambda s: (s.request.priority, s.request.tenant.service, s.order))


def victim_for(
    newcomer: Sequence, running: Iterable[Sequence], holding: Callable[[Tenant], float], gain: float
) -> Sequence | None:
    """The one to preempt so that `newcomer` gets its place; None if everybody has a better claim than it.

    `holding` says how much of what is short (rows or blocks) a tenant holds, `gain` how much of it the newcomer
    needs. A tenant gives way only if it still holds no less than the newcomer's tenant then will, by weight, and
    if it has been served more, as in a shortage. So whoever lost its place must be served less than the other
    before it can take it back, and two cannot take turns without getting on: recomputing is no service.
    """
    request = newcomer.request
    tenant = request.tenant
    will_hold = (holding(tenant) + gain) / tenant.weight

    def gives_way(sequence: Sequence) -> bool:
        other = sequence.request
        if other.priority != request.priority:
            return other.priority > request.priority
        if other.tenant.service <= tenant.service:
            return False
        return (holding(other.tenant) - gain) / other.tenant.weight >= will_hold

    candidates = [sequence for sequence in running if gives_way(sequence)]
    if not candidates:
        return None
    return max(
        candidates,
        key=lambda s: (s.request.priority, holding(s.request.tenant) / s.request.tenant.weight, s.order),
    )
