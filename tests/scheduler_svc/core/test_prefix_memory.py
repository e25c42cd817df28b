"""A remembered prefix is as long as one walked from the root, whatever happened between two looks."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler_svc.core.block_pool import BlockPool
from scheduler_svc.core.prefix_memory import PrefixMemory

_NUM_BLOCKS = 12
_CHAINS = [[f"{chain}-{place}".encode() for place in range(6)] for chain in range(3)]

_REPLICAS = ("a", "b")

Step = tuple[str, str, int, int]
_STEPS = st.tuples(
    st.sampled_from(["commit", "evict", "look"]),
    st.sampled_from(_REPLICAS),
    st.integers(0, 2),
    st.integers(0, 6),
)


def walked(pool: BlockPool, hashes: list[bytes]) -> int:
    return next((place for place, each in enumerate(hashes) if pool.lookup(each) is None), len(hashes))


def cache(pool: BlockPool, hashes: list[bytes]) -> None:
    """Have the pool hold these, free, in blocks of its choice."""
    missing = [each for each in hashes if pool.lookup(each) is None]
    table = pool.allocate(len(missing))
    for block, each in zip(table, missing, strict=True):
        pool.commit(block, each)
    pool.free(table)


@given(st.lists(_STEPS, max_size=60))
def test_what_is_remembered_is_what_a_walk_finds(steps: list[Step]) -> None:
    pools, memories = {name: BlockPool(_NUM_BLOCKS) for name in _REPLICAS}, [PrefixMemory() for _ in _CHAINS]
    for what, name, chain, count in steps:
        pool, hashes = pools[name], _CHAINS[chain]
        if what == "commit":
            # From the leaf on too, so that a prefix has holes.
            cache(pool, hashes[count:] if count % 2 else hashes[:count])
        elif what == "evict":
            pool.free(pool.allocate(count))
        else:
            assert memories[chain].length(name, pool, hashes, 6) == walked(pool, hashes)
    for memory, hashes in zip(memories, _CHAINS, strict=True):
        for name, pool in pools.items():
            assert memory.length(name, pool, hashes, 6) == walked(pool, hashes)


def test_what_a_replica_forgets_behind_its_prefix_makes_the_prefix_no_longer() -> None:
    longer, shorter, memory, hashes = BlockPool(6), BlockPool(4), PrefixMemory(), _CHAINS[0]
    cache(longer, hashes)
    cache(shorter, hashes[4:])
    cache(shorter, hashes[:2])
    assert memory.length("a", longer, hashes, 6) == 6
    assert memory.length("b", shorter, hashes, 6) == 2
    # Where in the prefix a hash is was needed once the longer one forgot some.
    longer.free(longer.allocate(1))
    assert memory.length("a", longer, hashes, 6) == 5
    shorter.free(shorter.allocate(1))
    assert shorter.lookup(hashes[5]) is None
    assert memory.length("b", shorter, hashes, 6) == 2


def test_a_prefix_grows_and_shrinks_with_the_pool() -> None:
    pool, memory, hashes = BlockPool(6), PrefixMemory(), _CHAINS[0]
    cache(pool, hashes[:2])
    assert memory.length("worker", pool, hashes, 6) == 2
    cache(pool, hashes[2:5])
    assert memory.length("worker", pool, hashes, 6) == 5
    pool.free(
        pool.allocate(3)
    )  # the one that nobody can find, then the leaf and the one before it, of the first two
    assert memory.length("worker", pool, hashes, 6) == 0
    cache(pool, hashes[:2])
    assert memory.length("worker", pool, hashes, 6) == walked(pool, hashes) > 2


def test_replicas_and_a_replicas_new_pool_are_told_apart() -> None:
    full, empty, memory, hashes = BlockPool(6), BlockPool(6), PrefixMemory(), _CHAINS[0]
    cache(full, hashes)
    assert memory.length("a", full, hashes, 6) == 6
    assert memory.length("b", empty, hashes, 6) == 0
    assert memory.length("a", empty, hashes, 6) == 0


def test_more_was_forgotten_than_is_known() -> None:
    pool, memory, hashes = BlockPool(6), PrefixMemory(), _CHAINS[0]
    cache(pool, hashes)
    assert memory.length("worker", pool, hashes, 6) == 6
    for number in range(1000):
        cache(pool, [f"other-{number}-{place}".encode() for place in range(6)])
    assert pool.forgotten_since(0) is None
    assert memory.length("worker", pool, hashes, 6) == 0


def test_a_pool_says_what_it_forgot_since() -> None:
    pool = BlockPool(2)
    cache(pool, _CHAINS[0][:2])
    assert pool.forgotten_since(pool.num_forgotten) == []
    before = pool.num_forgotten
    pool.free(pool.allocate(1))
    assert pool.forgotten_since(before) == [_CHAINS[0][1]]
