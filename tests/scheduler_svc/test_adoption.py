"""Taking a worker over: what its blocks hold is believed only as far as the worker itself confirms it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
import redis.asyncio as redis

from benchmarks.instant_worker import InstantWorker
from quire.errors import NotReady
from quire.redis_client import open_redis
from quire.v1 import types_pb2, worker_pb2
from scheduler_svc import metrics, prefix_index
from scheduler_svc.core.block_hash import block_hash, root_hash
from scheduler_svc.prefix_index import Entry, key_of
from tests.scheduler_svc.conftest import (
    Service,
    Sockets,
    allow_steps,
    expected,
    running_scheduler,
    running_worker,
    token_request,
)
from tests.support.redis_server import RedisServer

PROMPT = list(range(100))


def index_key(worker: InstantWorker) -> str:
    description = worker.rows.description
    return key_of(description.worker_id, description.worker_epoch)


async def ask(service: Service, prompt: list[int]) -> int:
    """Have four tokens generated, as they must be; returns how many tokens came from the cache."""
    tokens: list[int] = []
    usage = types_pb2.Usage()
    async for update in service.stub.Generate(token_request(prompt, 4)):
        tokens += np.frombuffer(update.token_ids, np.int32).tolist()
        usage = update.usage
    assert tokens == expected(prompt, 4)
    return usage.cached_tokens


@asynccontextmanager
async def ready_scheduler(sockets: Sockets, url: str) -> AsyncIterator[Service]:
    async with running_scheduler(sockets("scheduler"), sockets("worker"), redis_url=url) as service:
        await service.until_state(types_pb2.SERVICE_STATE_READY)
        yield service


@pytest.fixture
async def observer(redis_server: RedisServer) -> AsyncIterator[redis.Redis]:
    """A client that only looks."""
    client = open_redis(redis_server.url)
    yield client
    await client.aclose()


def count(counter: str) -> float:
    return float(getattr(metrics, counter)._value.get())


async def test_without_a_redis_url_nothing_is_published_and_prompts_are_found_all_the_same(
    sockets: Sockets,
) -> None:
    """The index would be inside the scheduler, beside the pool of which it is a copy."""
    before = count("index_entries")
    async with running_worker(sockets("worker")), ready_scheduler(sockets, "") as service:
        await ask(service, PROMPT)
        assert await ask(service, PROMPT) == 96
    assert count("index_entries") == before


async def test_full_blocks_of_committed_tokens_are_published_and_nothing_else(
    sockets: Sockets, redis_server: RedisServer, observer: redis.Redis
) -> None:
    async with running_worker(sockets("worker")) as worker:
        async with ready_scheduler(sockets, redis_server.url) as service:
            await ask(service, PROMPT)
            await service.until_free()
        entries = await observer.hgetall(index_key(worker))
    # 100 tokens of prompt and the first 3 of 4 generated have their KV: six blocks of 16 are full.
    chain, parent = [], root_hash("instant-1", "", "")
    for start in range(0, 96, 16):
        parent = block_hash(parent, np.asarray(PROMPT[start : start + 16], np.int32).tobytes())
        chain.append(parent)
    assert set(entries) == set(chain)


async def test_a_scheduler_finds_the_cache_of_the_one_before(
    sockets: Sockets, redis_server: RedisServer
) -> None:
    async with running_worker(sockets("worker")):
        async with ready_scheduler(sockets, redis_server.url) as service:
            assert [await ask(service, PROMPT) for _ in range(2)] == [0, 96]
        before = count("index_adopted")
        async with ready_scheduler(sockets, redis_server.url) as service:
            assert await ask(service, PROMPT) == 96
        assert count("index_adopted") - before == 6


async def test_nothing_is_adopted_of_a_worker_that_was_started_again(
    sockets: Sockets, redis_server: RedisServer, observer: redis.Redis
) -> None:
    async with running_worker(sockets("worker")), ready_scheduler(sockets, redis_server.url) as service:
        await ask(service, PROMPT)
    before = count("index_adopted")
    async with running_worker(sockets("worker")) as worker:
        async with ready_scheduler(sockets, redis_server.url) as service:
            assert await ask(service, PROMPT) == 0
        assert await observer.keys("quire:blocks:*") == [index_key(worker).encode()]
    assert count("index_adopted") == before


async def test_entries_of_blocks_that_were_given_away_since_are_refused_and_counted(
    sockets: Sockets, redis_server: RedisServer, observer: redis.Redis
) -> None:
    async with running_worker(sockets("worker")) as worker:
        async with ready_scheduler(sockets, redis_server.url) as service:
            await ask(service, PROMPT)
            await service.until_free()
        key = index_key(worker)
        chain = sorted((await observer.hgetall(key)).items(), key=lambda item: Entry.unpack(item[1]).block)
        stale = [Entry.unpack(data) for _, data in chain[:3]]
        lies = {
            chain[0][0]: stale[0]._replace(assigned=(stale[0].assigned[0] - 1, stale[0].assigned[1])),
            chain[1][0]: stale[1]._replace(block=10**6),
            chain[2][0]: stale[2]._replace(block=-1),
        }
        await observer.hset(key, mapping={name: entry.pack() for name, entry in lies.items()})
        refused, adopted = count("index_refused"), count("index_adopted")
        async with ready_scheduler(sockets, redis_server.url) as service:
            await ask(service, PROMPT)
        assert (count("index_refused") - refused, count("index_adopted") - adopted) == (3, 3)


async def test_nothing_is_adopted_if_a_sampled_block_holds_something_else(
    sockets: Sockets, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_index, "is_sampled", lambda _: True)
    async with running_worker(sockets("worker")) as worker:
        async with ready_scheduler(sockets, redis_server.url) as service:
            await ask(service, PROMPT)
            await service.until_free()
        async with ready_scheduler(sockets, redis_server.url) as service:
            assert await ask(service, PROMPT) == 96, "sound blocks pass"
            await service.until_free()
        worker.rows._hashes += np.uint64(1)
        before = count("index_adopted")
        async with ready_scheduler(sockets, redis_server.url) as service:
            assert await ask(service, PROMPT) == 0
        assert count("index_adopted") == before


async def test_a_pool_is_not_believed_after_another_scheduler_has_used_the_worker(sockets: Sockets) -> None:
    """Neither knows of the other; the worker's word is all they share."""
    async with (
        running_worker(sockets("worker"), num_blocks=32) as worker,
        running_scheduler(sockets("scheduler"), sockets("worker")) as service,
    ):
        await service.until_state(types_pb2.SERVICE_STATE_READY)
        await ask(service, PROMPT)
        await service.until_free()
        async with running_scheduler(sockets("other"), sockets("worker")) as other:
            await other.until_state(types_pb2.SERVICE_STATE_READY)
            # All blocks but two are taken once more.
            for first in (200, 300, 400, 500, 600):
                await ask(other, list(range(first, first + 90)))
            await other.until_free()
        await service.until_state(types_pb2.SERVICE_STATE_READY)
        assert await ask(service, PROMPT) < 96
        assert worker.violations == []


async def test_a_pool_is_believed_after_a_stream_that_only_broke(sockets: Sockets) -> None:
    async with (
        running_worker(sockets("worker")) as worker,
        running_scheduler(sockets("scheduler"), sockets("worker"), worker_hang_s=0.3) as service,
    ):
        await service.until_state(types_pb2.SERVICE_STATE_READY)
        await ask(service, PROMPT)
        steps = allow_steps(worker, 0)
        meanwhile = asyncio.create_task(ask(service, [7, 8, 9]))
        await service.until_state(types_pb2.SERVICE_STATE_STARTING)
        steps.release_all()
        await meanwhile
        assert await ask(service, PROMPT) == 96


async def test_a_worker_that_does_not_describe_its_blocks_is_driven_without_its_cache(
    sockets: Sockets, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(self: object, request: object, context: object) -> worker_pb2.DescribeBlocksResponse:
        raise NotReady("not now")

    monkeypatch.setattr(InstantWorker, "DescribeBlocks", refuse)
    async with running_worker(sockets("worker")):
        for _ in range(2):
            async with ready_scheduler(sockets, redis_server.url) as service:
                assert await ask(service, PROMPT) == 0
