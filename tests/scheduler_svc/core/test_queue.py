"""Who waits, in which order, and when no more may."""

from array import array

import pytest

from quire.errors import Overloaded
from quire.v1 import types_pb2
from scheduler_svc.core.deadlines import Deadlines
from scheduler_svc.core.queue import WaitingQueue
from scheduler_svc.core.sequence import Request, Sequence


def request(priority: int = 0) -> Request:
    return Request(1, 1, "r", "t", priority, 0.0, None, None, b"", num_unfinished=1)


def sequence(order: int, *, priority: int = 0, num_tokens: int = 10) -> Sequence:
    return Sequence(
        request(priority),
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
    while (head := queue.peek()) is not None:
        queue.remove(head)
        orders.append(head.order)
    return orders


def test_lower_priority_values_run_first_then_the_older() -> None:
    queue = WaitingQueue(10, 1000)
    for order, priority in enumerate([0, 1, -1, 0]):
        queue.push(sequence(order, priority=priority))
    assert taken(queue) == [2, 0, 3, 1]
    assert queue.num_tokens == 0


def test_one_that_ran_before_comes_back_at_its_age() -> None:
    queue = WaitingQueue(10, 1000)
    for order in (3, 4):
        queue.push(sequence(order))
    queue.push(sequence(1))
    assert taken(queue) == [1, 3, 4]


def test_removals_from_the_middle_leave_nothing_behind() -> None:
    queue = WaitingQueue(1000, 10**6)
    waiting = [sequence(order) for order in range(200)]
    for item in waiting:
        queue.push(item)
    for item in waiting[1:]:
        queue.remove(item)
        queue.check_integrity()
    assert len(queue._heap) < 40
    assert taken(queue) == [0]


@pytest.mark.parametrize(("sequences", "tokens"), [(2, 5), (1, 30)])
def test_a_full_queue_says_when_to_come_again(sequences: int, tokens: int) -> None:
    queue = WaitingQueue(2, 40)
    queue.push(sequence(0, num_tokens=20))
    queue.check_room(1, 20, 5.0)
    with pytest.raises(Overloaded) as caught:
        queue.check_room(sequences, tokens, 5.0)
    assert caught.value.retry_after_s == 4.0  # 20 tokens at 5 a second


def test_an_empty_queue_takes_any_request() -> None:
    WaitingQueue(2, 40).check_room(8, 10**6, 0.0)


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
