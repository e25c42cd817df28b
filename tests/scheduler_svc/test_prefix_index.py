"""The prefix index: what is published, what is void, how large it gets, and how it heals."""

import asyncio
from collections.abc import Mapping, Sequence

import pytest
import redis.asyncio as redis

from quire import redis_client as redis_client_module
from quire.redis_client import RedisFailure, open_redis
from scheduler_svc import metrics, prefix_index
from scheduler_svc.prefix_index import LIFETIME_S, Entry, PrefixIndex, key_of
from tests.scheduler_svc.replicas import checksums_of_ids, connect, connected_replica, content, fill
from tests.support.redis_server import RedisServer
from tests.support.until import until

KEY = "quire:blocks:w:7"


async def stored(client: redis.Redis, key: str = KEY) -> set[bytes]:
    return {name for name in await client.hkeys(key) if isinstance(name, bytes)}


async def test_a_block_is_published_when_it_is_committed_and_only_then(redis_client: redis.Redis) -> None:
    replica, index = connected_replica(), PrefixIndex(redis_client, checksums_of_ids)
    index.follow(replica)
    held = replica.pool.allocate(2)
    await index.flush()
    assert await stored(redis_client) == set()
    replica.assigned[held[0]] = (5, 2**40)
    replica.pool.commit(held[0], content(0))
    await index.flush()
    assert await index.load("w", 7) == {content(0): Entry(held[0], (5, 2**40))}


async def test_an_evicted_block_is_withdrawn(redis_client: redis.Redis) -> None:
    replica, index = connected_replica(num_blocks=4), PrefixIndex(redis_client, checksums_of_ids)
    index.follow(replica)
    fill(replica, [content(i) for i in range(4)])
    await index.flush()
    fill(replica, [content(4)], step_id=2)
    await index.flush()
    assert await stored(redis_client) == set(replica.pool.contents())
    assert content(4) in replica.pool.contents()
    assert len(replica.pool.contents()) == 4


async def test_what_was_committed_and_evicted_between_two_writes_is_never_published(
    redis_client: redis.Redis,
) -> None:
    replica, index = connected_replica(num_blocks=2), PrefixIndex(redis_client, checksums_of_ids)
    index.follow(replica)
    for number in range(9):
        fill(replica, [content(number)], step_id=number)
    await index.flush()
    assert await stored(redis_client) == {content(7), content(8)}


async def test_a_block_in_256_has_its_checksum_kept(redis_client: redis.Redis) -> None:
    replica, index = connected_replica(), PrefixIndex(redis_client, checksums_of_ids)
    index.follow(replica)
    plain, sampled = fill(replica, [content(0), content(1, sampled=True)])
    await index.flush()
    entries = await index.load("w", 7)
    assert entries[content(0)] == Entry(plain, (1, 1), None)
    assert entries[content(1, sampled=True)] == Entry(sampled, (1, 1), 1000 + sampled)


async def test_no_checksum_is_kept_of_a_block_that_was_given_away_while_it_was_read(
    redis_client: redis.Redis,
) -> None:
    replica = connected_replica(num_blocks=1)

    async def read_late(worker: str, blocks: Sequence[int]) -> Mapping[int, int]:
        fill(replica, [content(1)], step_id=2)
        return await checksums_of_ids(worker, blocks)

    index = PrefixIndex(redis_client, read_late)
    index.follow(replica)
    fill(replica, [content(0, sampled=True)])
    await index.flush()
    await index.flush()
    assert await index.load("w", 7) == {content(1): Entry(0, (1, 2))}


async def test_entries_of_another_process_of_the_worker_are_void(redis_client: redis.Redis) -> None:
    replica, index = connected_replica(), PrefixIndex(redis_client, checksums_of_ids)
    index.follow(replica)
    fill(replica, [content(0)])
    await index.flush()
    assert await index.load("w", 8) == {}
    assert await index.count_known([("w", 8), ("w", 7)], [content(0)]) == {("w", 8): 0, ("w", 7): 1}


async def test_a_worker_has_one_key_however_often_it_is_started(redis_client: redis.Redis) -> None:
    replica, index = connected_replica(), PrefixIndex(redis_client, checksums_of_ids)
    before = metrics.index_refused._value.get()
    for epoch in (7, 8, 2**63 + 1):
        replica.disconnect(0.0)
        connect(replica, worker_epoch=epoch)
        index.follow(replica)
        fill(replica, [content(epoch)])
        await index.flush()
        assert await redis_client.keys("quire:blocks:*") == [key_of("w", epoch).encode()]
    assert metrics.index_refused._value.get() - before == 2, "what was known of the two before is refused"


async def test_a_key_never_has_more_entries_than_the_worker_blocks(redis_client: redis.Redis) -> None:
    replica, index = connected_replica(num_blocks=16), PrefixIndex(redis_client, checksums_of_ids)
    index.follow(replica)
    for number in range(60):
        fill(replica, [content(100 * number + i) for i in range(1 + number % 16)], step_id=number)
        await index.flush()
        assert await stored(redis_client) == set(replica.pool.contents())
        assert await redis_client.hlen(KEY) <= 16
    assert 0 < await redis_client.ttl(KEY) <= LIFETIME_S
    assert 0 < await redis_client.ttl("quire:blocks-epoch:w") <= LIFETIME_S


async def test_an_entry_takes_as_much_memory_as_is_documented(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_client_module, "TIMEOUT_S", 60.0)  # so many entries are a lot to write at once
    client = open_redis(redis_server.url)
    replica, index = connected_replica(num_blocks=20_000), PrefixIndex(client, checksums_of_ids)
    index.follow(replica)
    fill(replica, [content(i, sampled=i % 256 == 0) for i in range(20_000)])
    await index.flush()
    assert await client.hlen(KEY) == 20_000
    assert await client.memory_usage(KEY, samples=0) / 20_000 <= 128
    await client.aclose()


async def test_only_leading_blocks_of_a_prompt_count_as_known(redis_client: redis.Redis) -> None:
    replica, index = connected_replica(), PrefixIndex(redis_client, checksums_of_ids)
    index.follow(replica)
    fill(replica, [content(0), content(1), content(3)])
    await index.flush()
    chain = [content(i) for i in range(5)]
    assert await index.count_known([("w", 7), ("nobody", 1)], chain) == {("w", 7): 2, ("nobody", 1): 0}


async def test_what_is_no_entry_is_passed_over(redis_client: redis.Redis) -> None:
    index = PrefixIndex(redis_client, checksums_of_ids)
    good = Entry(3, (1, 2), 4)
    await redis_client.hset(KEY, mapping={b"short": b"x", b"long": b"y" * 50, b"good": good.pack()})
    assert await index.load("w", 7) == {b"good": good}


async def test_a_worker_that_another_scheduler_drives_is_written_no_more(redis_client: redis.Redis) -> None:
    replica, index = connected_replica(), PrefixIndex(redis_client, checksums_of_ids)
    index.follow(replica)
    fill(replica, [content(0)])
    await index.flush()
    index.unfollow("w")
    fill(replica, [content(1)])
    await index.flush()
    assert await stored(redis_client) == {content(0)}, "the next scheduler adopts it"
    assert replica.pool.journal is None, "nothing piles up"


async def test_taking_a_worker_over_withdraws_nothing_that_is_true(redis_client: redis.Redis) -> None:
    hashes = [content(i, sampled=True) for i in range(3)]
    before = PrefixIndex(redis_client, checksums_of_ids)
    replica = connected_replica()
    before.follow(replica)
    fill(replica, hashes)
    await before.flush()
    await redis_client.hset(KEY, content(9), Entry(9, (1, 1)).pack())
    seen = []

    async def look(worker: str, blocks: Sequence[int]) -> Mapping[int, int]:
        seen.append(await stored(redis_client))
        return {}

    after = PrefixIndex(redis_client, look)
    after.follow(replica)
    await after.flush()
    assert seen == [set(hashes)]
    assert await stored(redis_client) == set(hashes)


async def test_a_slow_worker_holds_up_no_others_entries(redis_client: redis.Redis) -> None:
    asked, may_answer = asyncio.Event(), asyncio.Event()

    async def answer_late(worker: str, blocks: Sequence[int]) -> Mapping[int, int]:
        asked.set()
        await may_answer.wait()
        return {}

    index = PrefixIndex(redis_client, answer_late)
    slow, quick = connected_replica("slow"), connected_replica("quick")
    for replica in (slow, quick):
        index.follow(replica)
    fill(slow, [content(0, sampled=True)])
    fill(quick, [content(1)])
    writing = asyncio.create_task(index.flush())
    await asked.wait()
    async with asyncio.timeout(60):
        while await stored(redis_client, key_of("quick", 7)) != {content(1)}:
            await asyncio.sleep(0.005)
    may_answer.set()
    await writing


async def test_a_write_that_was_cut_off_is_made_good(redis_client: redis.Redis) -> None:
    asked = asyncio.Event()

    async def never(worker: str, blocks: Sequence[int]) -> Mapping[int, int]:
        asked.set()
        return await asyncio.Future()

    index = PrefixIndex(redis_client, never)
    replica = connected_replica()
    index.follow(replica)
    await index.flush()
    fill(replica, [content(0, sampled=True)])
    writing = asyncio.create_task(index.flush())
    await asked.wait()
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    index._checksums = checksums_of_ids
    await index.flush()
    assert await stored(redis_client) == {content(0, sampled=True)}


async def test_a_key_that_was_lost_or_changed_is_made_good(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica, index = connected_replica(), PrefixIndex(redis_client, checksums_of_ids)
    index.follow(replica)
    fill(replica, [content(i) for i in range(5)])
    await index.flush()
    # While the pool changes, every write tells.
    await redis_client.delete(KEY)
    fill(replica, [content(5)])
    await index.flush()
    await index.flush()
    assert await stored(redis_client) == {content(i) for i in range(6)}
    # While it does not, a look now and then does.
    await redis_client.hset(KEY, content(9), Entry(9, (1, 1)).pack())
    monkeypatch.setattr(prefix_index, "REFRESH_S", 0.0)
    await index.flush()
    await index.flush()
    assert await stored(redis_client) == {content(i) for i in range(6)}


@pytest.mark.parametrize("fault", ["stop", "pause"])
async def test_the_index_is_as_the_pool_again_after_redis_was_away(
    redis_server: RedisServer, fault: str
) -> None:
    client = open_redis(redis_server.url)
    replica, index = connected_replica(num_blocks=8), PrefixIndex(client, checksums_of_ids)
    index.follow(replica)
    fill(replica, [content(i) for i in range(4)])
    await index.flush()
    getattr(redis_server, fault)()
    for number in range(3):
        fill(replica, [content(10 + number)], step_id=2)
        await index.flush()  # fails quietly
        assert replica.pool.journal is not None
        assert len(replica.pool.journal) == 0, "nothing piles up"
    fill(replica, [content(20), content(21)], step_id=3)
    with pytest.raises(RedisFailure):
        await index.load("w", 7)
    {"stop": redis_server.start, "pause": redis_server.resume}[fault]()
    running = asyncio.create_task(index.run())
    await until_true(client, set(replica.pool.contents()))
    running.cancel()
    await until(running.done)
    await client.aclose()


async def until_true(client: redis.Redis, expected: set[bytes]) -> None:
    async with asyncio.timeout(60):
        while await stored(client) != expected:
            await asyncio.sleep(0.01)
