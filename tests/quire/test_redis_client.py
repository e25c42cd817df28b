"""Clients of a Redis that is there, slow, away and back; and the embedded one."""

import asyncio

import pytest
import redis.asyncio as redis

from quire.redis_client import RedisFailure, open_redis
from quire.service import end_tasks
from tests.support.redis_server import RedisServer


async def test_a_client_gets_bytes_back(redis_client: redis.Redis) -> None:
    assert await redis_client.set("key", "value")
    assert await redis_client.get("key") == b"value"


async def test_embedded_servers_know_nothing_of_each_other() -> None:
    first, second = open_redis(""), open_redis("")
    await first.set("key", "value")
    assert await second.get("key") is None
    await first.aclose()
    await second.aclose()


async def test_a_server_that_does_not_answer_is_a_failure_and_no_wait_for_ever(
    redis_server: RedisServer,
) -> None:
    client = open_redis(redis_server.url)
    assert await client.ping()
    redis_server.pause()
    with pytest.raises(RedisFailure):
        await client.ping()
    redis_server.resume()
    assert await client.ping()
    await client.aclose()


async def test_a_server_that_was_started_again_is_found_again(redis_server: RedisServer) -> None:
    client = open_redis(redis_server.url)
    await client.set("key", "value")
    redis_server.stop()
    for _ in range(2):
        with pytest.raises(RedisFailure):
            await client.ping()
    redis_server.start()
    assert await client.get("key") is None
    await client.aclose()


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="Redis URL"):
        open_redis("nonsense")


async def test_whoever_uses_a_client_can_be_ended_at_any_moment(redis_client: redis.Redis) -> None:
    async def use() -> None:
        while True:
            await redis_client.set("key", "value")
            await asyncio.sleep(0)

    for turns in range(40):
        task = asyncio.create_task(use())
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await end_tasks([task])
        assert task.cancelled()
