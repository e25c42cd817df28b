"""Sequences that wait for a row: lower priority values first, then the tenant served least, then the oldest."""

from bisect import bisect_left, insort
from collections.abc import Iterator

from scheduler_svc.core.sequence import Sequence
from scheduler_svc.core.tenants import PROMPT_TOKEN_COST, Tenant

_Lane = list[Sequence]


def _order(sequence: Sequence) -> int:
    return sequence.order


class WaitingQueue:
    """One lane for each priority and tenant, oldest first. A preempted sequence keeps its age."""

    def __init__(self) -> None:
        self._lanes: dict[int, dict[Tenant, _Lane]] = {}
        self._num_waiting = 0
        self.num_tokens = 0
        """Tokens still to compute of all that wait."""

    def __len__(self) -> int:
        return self._num_waiting

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait."""
        request = sequence.request
        lanes = self._lanes.setdefault(request.priority, {})
        insort(lanes.setdefault(request.tenant, []), sequence, key=_order)
        self._num_waiting += 1
        self.num_tokens += sequence.num_uncached
        request.tenant.num_waiting_tokens += sequence.num_uncached

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        request = sequence.request
        lanes = self._lanes[request.priority]
        lane = lanes[request.tenant]
        place = bisect_left(lane, sequence.order, key=_order)
        assert lane[place] is sequence, "the sequence does not wait"
        del lane[place]
        if not lane:
            del lanes[request.tenant]
            if not lanes:
                del self._lanes[request.priority]
        self._num_waiting -= 1
        self.num_tokens -= sequence.num_uncached
        request.tenant.num_waiting_tokens -= sequence.num_uncached

    def in_order(self) -> Iterator[Sequence]:
        """Those that wait, in the order in which they should get rows; what is yielded may be removed.

        Each is counted against its tenant as if it had been served, so that tenants take turns in one pass too.
        """
        for priority in sorted(self._lanes):
            lanes = {tenant: list(lane) for tenant, lane in self._lanes[priority].items()}
            places = dict.fromkeys(lanes, 0)
            promised = {tenant: tenant.promised for tenant in lanes}
            while promised:
                tenant = min(promised, key=lambda t: (promised[t], t.index))
                sequence = lanes[tenant][places[tenant]]
                places[tenant] += 1
                promised[tenant] += len(sequence.token_ids) * PROMPT_TOKEN_COST / tenant.weight
                if places[tenant] == len(lanes[tenant]):
                    del promised[tenant]
                yield sequence

    def check_integrity(self) -> None:
        """Assert that the sums are those of what waits."""
        lanes = [lane for lanes in self._lanes.values() for lane in lanes.values()]
        assert all(lanes)
        assert self._num_waiting == sum(len(lane) for lane in lanes)
        assert self.num_tokens == sum(s.num_uncached for lane in lanes for s in lane)
        assert all([s.order for s in lane] == sorted(s.order for s in lane) for lane in lanes)
