"""Who gets a row next, and where."""

from scheduler_svc.core.limits import Limits
from scheduler_svc.core.preemption import victim_for, victim_of_shortage
from scheduler_svc.core.queue import Lane, WaitingQueue
from scheduler_svc.core.replica import Prefix, Replica
from scheduler_svc.core.routing import Offer, Route
from scheduler_svc.core.sequence import QueueCause, Request, Sequence
from scheduler_svc.core.tenants import Tenant

# A pass looks at so many sequences that it cannot place before it stops: the rest are behind them anyway.
_MAX_PASSED_OVER = 16
# A tenant's long prompts get rows only while so many full steps of its prompts, for each replica, are left to
# compute: more would hold blocks that others need, and be computed no sooner.
_MAX_PENDING_STEPS = 2
# So many shorter ones may overtake a sequence for which there are too few blocks; then it is next.
_MAX_OVERTAKEN = 64


class Placement:
    """Takes sequences from the queue to the replicas, one replica at a time as each can be sent a command."""

    def __init__(
        self, queue: WaitingQueue, replicas: dict[str, Replica], limits: Limits, route: Route
    ) -> None:
        self._queue = queue
        self._limits = limits
        self._replicas = replicas
        self._route = route

    def fill(self, target: Replica, now: float) -> list[Sequence]:
        """Place what goes to `target` now. Returns sequences that no worker known could ever run.

        A sequence that is cheaper elsewhere is left for that replica. One for which there are too few blocks lets
        shorter ones overtake it; if its tenant or priority has the better claim, another gives way to it.
        """
        misfits: list[Sequence] = []
        if not len(self._queue) or not target.has_room or target.draining:
            return misfits
        passed_over = 0
        blocked: list[Sequence] = []
        closed: set[Lane] = set()
        prefix_wanted: set[Request] = set()
        others = [r for r in self._replicas.values() if r is not target and r.connected and not r.draining]
        for sequence in self._queue.in_order(closed):
            if passed_over == _MAX_PASSED_OVER:
                break
            # What cannot be placed for its tenant's or its own request's sake must not keep others from being seen.
            if self._has_enough_pending(sequence):
                closed.add(self._queue.lane_of(sequence))
                continue
            if sequence.request in prefix_wanted:
                continue
            if not any(replica.fits(sequence) for replica in self._replicas.values()):
                misfits.append(sequence)
                continue
            passed_over += 1
            if not target.fits(sequence):
                sequence.queue_cause = QueueCause.WORKER
                continue
            if any(len(sequence.token_ids) >= len(other.token_ids) for other in blocked):
                continue
            _, prefix, obstacle, here = target.look(sequence)
            elsewhere = _open_elsewhere(sequence, others)
            takes = obstacle in (None, QueueCause.PREFIX)
            if takes and elsewhere and self._route(sequence.order, [here, *elsewhere]) is not here:
                continue
            if obstacle is None:
                self._place(sequence, target, prefix, now)
                passed_over -= 1
                for other in blocked:
                    other.num_overtaken += 1
                continue
            sequence.queue_cause = obstacle
            if obstacle is QueueCause.TENANT:
                closed |= {Lane(sequence.request.tenant, is_long) for is_long in (False, True)}
                passed_over -= 1
            elif obstacle is QueueCause.PREFIX:
                prefix_wanted.add(sequence.request)
            if obstacle in (QueueCause.ROWS, QueueCause.BLOCKS) and not elsewhere:
                if not blocked:
                    _make_room(target, sequence, prefix, obstacle)
                blocked.append(sequence)
            if target.num_rows_free <= 0 or (blocked and blocked[-1].num_overtaken >= _MAX_OVERTAKEN):
                break
        return misfits

    def _has_enough_pending(self, sequence: Sequence) -> bool:
        """Whether it is long, and its tenant has prompts on rows to be busy with for a while."""
        if sequence.num_uncached <= self._limits.short_prompt_tokens:
            return False
        num_replicas = sum(replica.connected for replica in self._replicas.values())
        most = _MAX_PENDING_STEPS * self._limits.max_step_tokens * num_replicas
        return sequence.request.tenant.num_pending >= most

    def _place(self, sequence: Sequence, target: Replica, prefix: Prefix, now: float) -> None:
        self._queue.remove(sequence)
        sequence.replica = target.name
        target.place(sequence, prefix, now)


def _open_elsewhere(sequence: Sequence, others: list[Replica]) -> list[Offer]:
    """Offers of the other replicas that could take the sequence now, or are computing its prefix."""
    looks = [replica.look(sequence) for replica in others]
    return [look.offer for look in looks if look.obstacle is None or look.obstacle is QueueCause.PREFIX]


def _make_room(replica: Replica, newcomer: Sequence, prefix: Prefix, obstacle: QueueCause) -> None:
    """Preempt one sequence with a lesser claim than `newcomer`, unless room is on its way already."""
    if obstacle is QueueCause.ROWS:
        if any(True for _ in replica.leaving()):
            return
        held: dict[int, int] = {}
        for sequence in replica.running():
            index = sequence.request.tenant.index
            held[index] = held.get(index, 0) + 1
        gain = 1
    else:
        held = replica.pool.held
        gain = replica.num_blocks_needed(newcomer, prefix)
        if replica.num_returning() + replica.pool.available(newcomer.request.tenant.index) >= gain:
            return

    def holding(tenant: Tenant) -> float:
        return held.get(tenant.index, 0)

    if obstacle is QueueCause.BLOCKS and gain <= replica.pool.reserved(newcomer.request.tenant.index):
        # Its floor was set while others held the blocks.
        victim = victim_of_shortage(replica.above_floor())
    else:
        victim = victim_for(newcomer, replica.running(), holding, gain)
    if victim is not None:
        replica.preempt(victim)
