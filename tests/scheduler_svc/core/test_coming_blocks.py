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


def test_a_block_is_coming_until_it_is_computed() -> None:
    coming, first = ComingBlocks(), computing(1)
    coming.begin(first, 1, 3)
    assert [coming.has(each, 0) for each in HASHES] == [False, True, True]
    coming.end(first, 1, 2)
    assert [coming.has(each, 0) for each in HASHES] == [False, False, True]
    coming.clear()
    assert not coming.has(HASHES[2], 0)


def test_of_two_that_compute_a_block_the_first_counts() -> None:
    coming, first, second = ComingBlocks(), computing(1), computing(2)
    coming.begin(first, 0, 2)
    coming.begin(second, 0, 3)
    coming.end(second, 0, 3)
    assert [coming.has(each, 0) for each in HASHES] == [True, True, False]
    coming.check_integrity({first})
    with pytest.raises(AssertionError, match="nobody computes"):
        coming.check_integrity({second})


def test_what_would_be_overtaken_is_not_waited_for() -> None:
    coming = ComingBlocks()
    coming.begin(computing(1, priority=5), 0, 3)
    assert coming.has(HASHES[0], 5)
    assert coming.has(HASHES[0], 9)
    assert not coming.has(HASHES[0], 4)
