"""Who waits, in which order, and when no more may."""

from array import array

from quire.v1 import types_pb2
from scheduler_svc.core.deadlines import Deadlines
from scheduler_svc.core.queue import WaitingQueue
from scheduler_svc.core.sequence import Request, Sequence
from scheduler_svc.core.tenants import Tenant

SOMEBODY = Tenant("t", 0)


def request(priority: int = 0, tenant: Tenant = SOMEBODY) -> Request:
    return Request(1, 1, "r", tenant, priority, 0.0, None, None, b"", num_unfinished=1)


def sequence(order: int, *, priority: int = 0, num_tokens: int = 10, tenant: Tenant = SOMEBODY) -> Sequence:
    return Sequence(
        request(priority, tenant),
        0,
        order,
        token_ids=array("i", range(num_tokens)),
        num_prompt_tokens=num_tokens,
        max_total_tokens=100,
        sampling=types_pb2.SamplingParams(),
        stop_token_ids=frozenset(),
    )


def taken(queue: WaitingQueue) -> list[int]:
    """Orders of all that wait, as they would run."""
    orders = []
    for head in queue.in_order():
        queue.remove(head)
        orders.append(head.order)
    return orders


def test_lower_priority_values_run_first_then_the_older() -> None:
    queue = WaitingQueue(short_prompt_tokens=512)
    for order, priority in enumerate([0, 1, -1, 0]):
        queue.push(sequence(order, priority=priority))
    assert taken(queue) == [2, 0, 3, 1]
    assert queue.num_tokens == 0


def test_one_that_ran_before_comes_back_at_its_age() -> None:
    queue = WaitingQueue(short_prompt_tokens=512)
    for order in (3, 4):
        queue.push(sequence(order))
    queue.push(sequence(1))
    assert taken(queue) == [1, 3, 4]


def test_tenants_take_turns_by_weighted_tokens() -> None:
    queue = WaitingQueue(short_prompt_tokens=512)
    flood, other, heavy = Tenant("flood", 0), Tenant("other", 1), Tenant("heavy", 2, weight=2.0)
    for order in range(4):
        queue.push(sequence(order, tenant=flood))
    for order, tenant in enumerate([other, other, heavy, heavy, heavy, heavy], start=4):
        queue.push(sequence(order, tenant=tenant))
    assert taken(queue) == [0, 4, 6, 7, 1, 5, 8, 9, 2, 3]


def test_what_is_placed_but_not_computed_counts_as_served() -> None:
    queue, busy, idle = (
        WaitingQueue(short_prompt_tokens=512),
        Tenant("busy", 0, num_pending=50),
        Tenant("idle", 1),
    )
    queue.push(sequence(0, tenant=busy))
    queue.push(sequence(1, tenant=idle))
    assert taken(queue) == [1, 0]


def test_nothing_more_comes_from_a_lane_that_is_closed_on_the_way() -> None:
    queue, closed, seen = WaitingQueue(short_prompt_tokens=20), set(), []
    for order, num_tokens in enumerate([30, 30, 10, 30, 10]):
        queue.push(sequence(order, num_tokens=num_tokens))
    for waiting in queue.in_order(closed):
        seen.append(waiting.order)
        if waiting.order == 1:
            closed.add(queue.lane_of(waiting))
    assert seen == [0, 1, 2, 4]


def test_removals_from_the_middle_leave_nothing_behind() -> None:
    queue = WaitingQueue(short_prompt_tokens=512)
    waiting = [sequence(order) for order in range(200)]
    for item in waiting:
        queue.push(item)
    for item in waiting[1:]:
        queue.remove(item)
        queue.check_integrity()
    assert taken(queue) == [0]


def test_deadlines_forget_requests_that_ended() -> None:
    deadlines, ended = Deadlines(), request()
    ended.num_unfinished = 0
    for _ in range(1000):
        deadlines.watch(100.0, ended)
    assert len(deadlines._heap) <= 64
    living = request()
    deadlines.watch(50.0, living)
    assert deadlines.next() == 50.0
    assert list(deadlines.due(49.0)) == []
    assert list(deadlines.due(200.0)) == [living]
