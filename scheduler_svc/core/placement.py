"""Who gets a row next, and where."""

from collections import Counter
from itertools import islice
from math import inf

from scheduler_svc.core.limits import Limits
from scheduler_svc.core.looks import Prefix, cached_blocks, look, num_blocks_needed
from scheduler_svc.core.preemption import victim_for, victim_of_shortage
from scheduler_svc.core.queue import Lane, WaitingQueue
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.routing import Offer, Route
from scheduler_svc.core.sequence import QueueCause, Request, Sequence
from scheduler_svc.core.tenants import Tenant

# So many sequences of a lane that cannot be placed close it, and so many of all lanes end a pass; it looks at no more
# than so many, those included that only wait for a prefix.
_MAX_PASSED_OVER = 8
_MAX_PASSED_OVER_IN_ALL = 32
_MAX_LOOKED_AT = 256
# A tenant's long prompts get rows of a replica only while so many full steps of its prompts are left to compute
# there: more would hold blocks that others need, and be computed no sooner.
_MAX_PENDING_STEPS = 2
# So many others may overtake a sequence for which there are too few blocks; then it is next.
_MAX_OVERTAKEN = 64


class _Pass:
    """What one pass over the queue has found so far."""

    def __init__(self) -> None:
        self.closed: set[Lane] = set()
        """Lanes of which nothing more is looked at."""
        self.blocked: list[Sequence] = []
        """Those for which there are too few blocks, or no row."""
        self._shortest = inf
        """Tokens of the shortest of those."""
        self.at_ceiling: dict[Tenant, Sequence] = {}
        """The first of each tenant that may not hold as many blocks as that takes."""
        self.awaited: set[Request] = set()
        """Whose prefix another sequence is computing."""
        self._passed_over: Counter[Lane] = Counter()

    @property
    def is_over(self) -> bool:
        """Whether enough could not be placed: the rest are behind them."""
        return self._passed_over.total() >= _MAX_PASSED_OVER_IN_ALL

    def pass_over(self, lane: Lane) -> None:
        """One of the lane could not be placed."""
        self._passed_over[lane] += 1
        if self._passed_over[lane] == _MAX_PASSED_OVER:
            self.closed.add(lane)

    def close_for_ceiling(self, sequence: Sequence, lane: Lane) -> None:
        """Its tenant holds too much for it. Shorter ones of another lane may go on for a while."""
        self.closed.add(lane)
        first = self.at_ceiling.setdefault(sequence.request.tenant, sequence)
        if first.num_overtaken >= _MAX_OVERTAKEN:
            self.closed |= {lane._replace(is_long=is_long) for is_long in (False, True)}

    def overtake(self, tenant: Tenant) -> None:
        """A sequence of this tenant got a row."""
        for other in self.blocked:
            other.num_overtaken += 1
        if tenant in self.at_ceiling:
            self.at_ceiling[tenant].num_overtaken += 1

    def must_wait(self, sequence: Sequence) -> bool:
        """Whether others that are blocked are to be served before it."""
        if not self.blocked:
            return False
        return len(sequence.token_ids) >= self._shortest or self.blocked[-1].num_overtaken >= _MAX_OVERTAKEN

    def block(self, sequence: Sequence) -> None:
        """There is no room for it: only shorter ones may be placed now."""
        self.blocked.append(sequence)
        self._shortest = min(self._shortest, len(sequence.token_ids))


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
        found = _Pass()
        others = {
            name: replica
            for name, replica in self._replicas.items()
            if replica is not target and replica.connected and not replica.draining
        }
        for sequence in islice(self._queue.in_order(found.closed), _MAX_LOOKED_AT):
            lane = self._queue.lane_of(sequence)
            if self._has_enough_pending(sequence, target):
                found.closed.add(lane)
            elif not self.could_run(sequence):
                misfits.append(sequence)
            elif sequence.request not in found.awaited:
                self._try(sequence, lane, target, others, found, now)
            if found.is_over or (target.num_rows_free <= 0 and found.blocked):
                break
        return misfits

    def could_run(self, sequence: Sequence) -> bool:
        """Whether a worker that is there, or may come back, holds the sequence to its limit."""
        return any(
            replica.fits(sequence)
            for replica in self._replicas.values()
            if replica.connected or replica.missed_since < inf
        )

    def _try(
        self,
        sequence: Sequence,
        lane: Lane,
        target: Replica,
        others: dict[str, Replica],
        found: _Pass,
        now: float,
    ) -> None:
        """Place the sequence, or note why not."""
        if not target.fits(sequence):
            sequence.queue_cause = QueueCause.WORKER
            found.pass_over(lane)
            return
        reserved = target.pool.reserved(sequence.request.tenant.index)
        # What a floor keeps for it is nobody else's to wait for.
        if found.must_wait(sequence) and target.blocks_for(len(sequence.token_ids)) > reserved:
            found.pass_over(lane)
            return
        _, prefix, obstacle, here, takes = look(target, sequence)
        if takes and self._is_left_for_another(sequence, here, others):
            found.pass_over(lane)
            return
        if obstacle is None:
            self._place(sequence, target, prefix, now)
            found.overtake(sequence.request.tenant)
            return
        sequence.queue_cause = obstacle
        if obstacle is QueueCause.TENANT:
            found.close_for_ceiling(sequence, lane)
        elif obstacle is QueueCause.PREFIX:
            found.awaited.add(sequence.request)
        elif any(look(replica, sequence).is_open for replica in others.values()):
            found.pass_over(lane)
        else:
            if not found.blocked:
                _make_room(target, sequence, prefix, obstacle)
            found.block(sequence)
            found.pass_over(lane)

    def _is_left_for_another(self, sequence: Sequence, here: Offer, others: dict[str, Replica]) -> bool:
        """Whether one of the others could take the sequence now, or is computing its prefix, and should rather."""
        rank = self._route(sequence.order, here)
        # Most often it is the one that was found last time.
        last = others.get(sequence.left_for)
        for replica in others.values() if last is None else (last, *others.values()):
            there = look(replica, sequence)
            if there.is_open and self._route(sequence.order, there.offer) < rank:
                sequence.left_for = replica.name
                return True
        return False

    def _has_enough_pending(self, sequence: Sequence, target: Replica) -> bool:
        """Whether it is long, and its tenant has prompts of no lower priority there to be busy with for a while."""
        if sequence.num_uncached <= self._limits.short_prompt_tokens:
            return False
        request = sequence.request
        pending = sum(
            other.num_prefill_left
            for other in target.prefilling
            if other.request.tenant is request.tenant and other.request.priority <= request.priority
        )
        return pending >= _MAX_PENDING_STEPS * target.max_step_tokens

    def _place(self, sequence: Sequence, target: Replica, prefix: Prefix, now: float) -> None:
        self._queue.remove(sequence)
        sequence.replica, sequence.num_overtaken = target.name, 0
        target.place(sequence, cached_blocks(target, sequence, prefix), now)


def _make_room(replica: Replica, newcomer: Sequence, prefix: Prefix, obstacle: QueueCause) -> None:
    """Preempt one sequence with a lesser claim than `newcomer`, unless room is on its way already."""
    pool, index = replica.pool, newcomer.request.tenant.index
    running = list(replica.running())
    if obstacle is QueueCause.ROWS:
        if any(True for _ in replica.leaving()):
            return
        held: dict[int, int] = {}
        for sequence in running:
            owner = sequence.request.tenant.index
            held[owner] = held.get(owner, 0) + 1
        gain = 1
    else:
        held = pool.held
        gain = num_blocks_needed(replica, newcomer, prefix)
        if replica.num_returning_to(index) + pool.available(index) >= gain:
            return

    def holding(tenant: Tenant) -> float:
        return held.get(tenant.index, 0)

    if obstacle is QueueCause.BLOCKS:
        # What others hold within their floors would come back to nobody but themselves.
        running = [
            s
            for s in running
            if s.request.tenant.index == index or pool.is_above_floor(s.request.tenant.index)
        ]
    if obstacle is QueueCause.BLOCKS and gain <= pool.reserved(index):
        # Its floor was set while others held the blocks.
        victim = victim_of_shortage(replica.above_floor())
    else:
        victim = victim_for(newcomer, running, holding, gain)
    if victim is not None:
        replica.preempt(victim)
