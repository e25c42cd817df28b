"""Blocks are counted, found again while free, and evicted in the stated order."""

import pytest

from scheduler_svc.core.block_pool import NOBODY, BlockPool


def hashes(count: int) -> list[bytes]:
    return [bytes([number]) * 16 for number in range(count)]


def cached_table(pool: BlockPool, names: list[bytes]) -> list[int]:
    """A table of committed blocks, given back."""
    table = pool.allocate(len(names))
    for block, name in zip(table, names, strict=True):
        pool.commit(block, name)
    pool.free(table)
    return table


def test_a_freed_block_stays_findable_until_it_is_evicted() -> None:
    pool, names = BlockPool(4), hashes(2)
    table = cached_table(pool, names)
    assert [pool.lookup(name) for name in names] == table
    assert (pool.num_free, pool.num_cached) == (4, 2)
    pool.allocate(4)
    assert [pool.lookup(name) for name in names] == [None, None]
    assert (pool.num_free, pool.num_cached) == (0, 0)


def test_leaves_are_evicted_before_their_roots_and_the_unfindable_before_both() -> None:
    pool, names = BlockPool(4), hashes(2)
    root, leaf = cached_table(pool, names)
    assert set(pool.allocate(2)).isdisjoint({root, leaf})
    assert pool.allocate(1) == [leaf]
    assert pool.allocate(1) == [root]


def test_the_least_recently_freed_is_evicted_first() -> None:
    pool, names = BlockPool(2), hashes(2)
    first, second = pool.allocate(2)
    pool.commit(first, names[0])
    pool.commit(second, names[1])
    pool.free([second])
    pool.free([first])
    assert pool.allocate(1) == [second]


def test_a_shared_block_is_free_when_its_last_holder_gives_it_back() -> None:
    pool, names = BlockPool(2), hashes(1)
    (block,) = cached_table(pool, names)
    pool.share([block])
    pool.share([block])
    pool.free([block])
    assert (pool.ref_count(block), pool.num_free) == (1, 1)
    pool.free([block])
    assert (pool.num_free, pool.num_cached) == (2, 1)
    pool.check_integrity([])


def test_content_that_another_held_block_has_stays_where_it_is() -> None:
    pool, names = BlockPool(2), hashes(1)
    first, second = pool.allocate(2)
    pool.commit(first, names[0])
    pool.commit(second, names[0])
    assert pool.lookup(names[0]) == first
    pool.free([first, second])
    assert pool.num_cached == 1
    pool.check_integrity([])


def test_content_of_a_free_block_moves_to_the_block_that_is_held() -> None:
    pool, names = BlockPool(3), hashes(1)
    (old,) = cached_table(pool, names)
    pool.journal = []
    (new,) = pool.allocate(1)
    pool.commit(new, names[0])
    assert pool.lookup(names[0]) == new
    assert dict(pool.journal) == {names[0]: new}
    assert (pool.num_free, pool.num_cached) == (2, 0)
    assert old in pool.allocate(2)
    pool.check_integrity([(NOBODY, [0, 1, 2])])


def test_a_block_counts_for_everybody_who_holds_it_and_for_nobody_else() -> None:
    pool, names = BlockPool(4), hashes(1)
    (block,) = pool.allocate(1, owner=1)
    pool.commit(block, names[0])
    pool.share([block], owner=2)
    pool.share([block], owner=2)
    assert not pool.is_new_to(block, 2)
    assert pool.is_new_to(block, 3)
    pool.free([block], owner=1)
    assert (pool.held[1], pool.held[2]) == (0, 1)
    pool.check_integrity([(2, [block]), (2, [block])])
    pool.free([block], owner=2)
    pool.free([block], owner=2)
    assert pool.held[2] == 0
    assert pool.num_free == 4
    pool.check_integrity([])


def test_an_owner_takes_what_is_free_to_all_before_its_own_prefix_within_its_floor() -> None:
    pool, names = BlockPool(8), hashes(4)
    pool.set_floor(1, 6)
    mine = pool.allocate(2, owner=1)
    others = pool.allocate(2, owner=2)
    for block, name in zip(mine + others, names, strict=True):
        pool.commit(block, name)
    pool.free(mine, owner=1)
    pool.free(others, owner=2)
    pool.allocate(5, owner=1)
    assert [pool.lookup(name) is None for name in names] == [False, False, False, True]


def test_the_integrity_check_sees_a_lost_reference() -> None:
    pool = BlockPool(3)
    table = pool.allocate(2)
    pool.check_integrity([(NOBODY, table)])
    with pytest.raises(AssertionError, match="reference counts"):
        pool.check_integrity([])
