"""Sequences that wait for a row: lower priority values first, then the tenant served least, then the oldest."""

from bisect import bisect_left, insort
from collections.abc import Container, Iterator
from typing import NamedTuple

from scheduler_svc.core.awaited_blocks import AwaitedBlocks
from scheduler_svc.core.sequence import Sequence
from scheduler_svc.core.tenants import PROMPT_TOKEN_COST, Tenant


class Lane(NamedTuple):
    """Whose sequences stand in one lane; long prompts stand apart, so that they can be passed over together."""

    tenant: Tenant
    is_long: bool


def _order(sequence: Sequence) -> int:
    return sequence.order


class WaitingQueue:
    """Lanes for each priority, oldest first. A preempted sequence keeps its age.

    `short_prompt_tokens`: what has more positions to compute is long.
    """

    def __init__(self, short_prompt_tokens: int) -> None:
        self._short_prompt_tokens = short_prompt_tokens
        self._lanes: dict[int, dict[Lane, list[Sequence]]] = {}
        self._num_waiting = 0
        self.num_tokens = 0
        """Tokens still to compute of all that wait."""
        self.num_short_tokens = 0
        """Those of the short prompts."""
        self.blocks = AwaitedBlocks()

    def __len__(self) -> int:
        return self._num_waiting

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        request = sequence.request
        lanes = self._lanes.setdefault(request.priority, {})
        insort(lanes.setdefault(self.lane_of(sequence), []), sequence, key=_order)
        self._num_waiting += 1
        self._count(sequence, 1)
        self.blocks.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        request = sequence.request
        lanes = self._lanes[request.priority]
        lane = lanes[self.lane_of(sequence)]
        place = bisect_left(lane, sequence.order, key=_order)
        assert lane[place] is sequence, "the sequence does not wait"
        del lane[place]
        if not lane:
            del lanes[self.lane_of(sequence)]
            if not lanes:
                del self._lanes[request.priority]
        self._num_waiting -= 1
        self._count(sequence, -1)
        self.blocks.remove(sequence)

    def _count(self, sequence: Sequence, sign: int) -> None:
        tokens = sign * sequence.num_uncached
        self.num_tokens += tokens
        if not self.lane_of(sequence).is_long:
            self.num_short_tokens += tokens
        sequence.request.tenant.num_waiting_tokens += tokens

    def lane_of(self, sequence: Sequence) -> Lane:
        """Where a sequence stands."""
        return Lane(sequence.request.tenant, sequence.num_uncached > self._short_prompt_tokens)

    def in_order(self, closed: Container[Lane] = ()) -> Iterator[Sequence]:
        """Those that wait, in the order in which they should get rows; what is yielded may be removed.

        Each is counted against its tenant as if it had been served, so that tenants take turns in one pass too.
        Nothing comes from a lane once it is in `closed`, which may grow in between.
        """
        for priority in sorted(self._lanes):
            rest = {lane: iter(list(waiting)) for lane, waiting in self._lanes[priority].items()}
            heads = {lane: next(waiting) for lane, waiting in rest.items()}
            promised = {lane.tenant: lane.tenant.promised for lane in heads}
            while heads:
                lane = min(heads, key=lambda o: (promised[o.tenant], o.tenant.index, heads[o].order))
                head = heads.pop(lane)
                if lane in closed:
                    continue
                promised[lane.tenant] += len(head.token_ids) * PROMPT_TOKEN_COST / lane.tenant.weight
                if (following := next(rest[lane], None)) is not None:
                    heads[lane] = following
                yield head

    def check_integrity(self) -> None:
        """Assert that the sums are those of what waits."""
        lanes = [lane for lanes in self._lanes.values() for lane in lanes.values()]
        assert all(lanes)
        assert self._num_waiting == sum(len(lane) for lane in lanes)
        assert self.num_tokens == sum(s.num_uncached for lane in lanes for s in lane)
        self.blocks.check_integrity(s for lane in lanes for s in lane)
        assert all([s.order for s in lane] == sorted(s.order for s in lane) for lane in lanes)
