"""Who computes a block that others wait for."""

import pytest

from scheduler_svc.core.coming_blocks import ComingBlocks
from scheduler_svc.core.sequence import Sequence
from tests.scheduler_svc.core.test_queue import sequence

HASHES = [b"0", b"1", b"2"]


def computing(order: int, *, priority: int = 0) -> Sequence:
    found = sequence(order, priority=priority)
    found.block_hashes = list(HASHES)
    return found


def are_coming(coming: ComingBlocks, priority: int = 0) -> list[bool]:
    """Whether each of HASHES is."""
    return [coming.num_leading(HASHES, place, place + 1, priority) == 1 for place in range(len(HASHES))]


def test_a_block_is_coming_until_it_is_computed() -> None:
    coming, first = ComingBlocks(), computing(1)
    coming.begin(first, 1, 3)
    assert are_coming(coming) == [False, True, True]
    coming.end(first, 1, 2)
    assert are_coming(coming) == [False, False, True]
    coming.clear()
    assert not any(are_coming(coming))


def test_of_two_that_compute_a_block_the_first_counts() -> None:
    coming, first, second = ComingBlocks(), computing(1), computing(2)
    coming.begin(first, 0, 2)
    coming.begin(second, 0, 3)
    coming.end(second, 0, 3)
    assert are_coming(coming) == [True, True, False]
    coming.check_integrity({first})
    with pytest.raises(AssertionError, match="nobody computes"):
        coming.check_integrity({second})


def test_what_would_be_overtaken_is_not_waited_for() -> None:
    coming = ComingBlocks()
    coming.begin(computing(1, priority=5), 0, 3)
    assert are_coming(coming, 5) == [True, True, True]
    assert are_coming(coming, 9) == [True, True, True]
    assert not any(are_coming(coming, 4))


def test_those_in_a_row_count_as_far_as_they_are_asked_about() -> None:
    coming, first = ComingBlocks(), computing(1)
    assert coming.num_leading(HASHES, 0, 3, 0) == 0
    coming.begin(first, 0, 3)
    assert [coming.num_leading(HASHES, start, 3, 0) for start in range(4)] == [3, 2, 1, 0]
    assert coming.num_leading(HASHES, 0, 2, 0) == 2
    coming.end(first, 1, 2)
    assert coming.num_leading(HASHES, 0, 3, 0) == 1
