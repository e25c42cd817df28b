"""The registry: who is there, who has gone, and what becomes of it when Redis loses everything."""

import asyncio

import pytest
import redis.asyncio as redis

from quire.redis_client import open_redis
from quire.registry import LIFETIME_S, Registration, members, reachable_address, text_of
from tests.support.redis_server import RedisServer
from tests.support.until import until


def registration(client: redis.Redis, member: str = "a", **record: object) -> Registration:
    return Registration(client, "worker", member, lambda: {"address": f"{member}:1", **record})


async def test_processes_are_found_by_kind_with_what_they_say_of_themselves(
    redis_client: redis.Redis,
) -> None:
    await registration(redis_client, "a", epoch=2**63).beat()
    await registration(redis_client, "b").beat()
    await Registration(redis_client, "scheduler", "s", dict).beat()
    assert await members(redis_client, "worker") == {
        "a": {"address": "a:1", "epoch": 2**63},
        "b": {"address": "b:1"},
    }
    assert await members(redis_client, "scheduler") == {"s": {}}
    assert await members(redis_client, "gateway") == {}


async def test_a_record_lasts_a_few_heartbeats(redis_client: redis.Redis) -> None:
    await registration(redis_client).beat()
    assert 0 < await redis_client.pttl("quire:worker:a") <= LIFETIME_S * 1000


async def test_a_process_that_is_dead_is_dropped_by_whoever_sees_it(redis_client: redis.Redis) -> None:
    await registration(redis_client).beat()
    await redis_client.delete("quire:worker:a")  # as by expiry
    assert await members(redis_client, "worker") == {}
    assert await redis_client.smembers("quire:workers") == set()


async def test_a_process_that_withdraws_is_gone_at_once(redis_client: redis.Redis) -> None:
    entry = registration(redis_client)
    await entry.beat()
    await entry.withdraw()
    assert await members(redis_client, "worker") == {}
    assert await redis_client.keys() == []


@pytest.mark.parametrize(
    "record", ["", "{", "null", "[1]", "7", "[" * 100_000, "\udcff".encode(errors="surrogateescape")]
)
async def test_a_record_that_is_none_hides_no_other(redis_client: redis.Redis, record: str | bytes) -> None:
    await registration(redis_client, "a").beat()
    await redis_client.sadd("quire:workers", "b")
    await redis_client.set("quire:worker:b", record)
    assert list(await members(redis_client, "worker")) == ["a"]


@pytest.mark.parametrize("record", [{}, {"address": None}, {"address": 7}, {"address": "\ud800"}])
def test_text_of_a_record_is_text_that_can_be_sent(record: dict[str, object]) -> None:
    with pytest.raises((KeyError, ValueError)):
        text_of(record, "address")
    assert text_of({"address": "unix:/é"}, "address") == "unix:/é"


async def test_a_process_registers_again_with_a_redis_that_came_back_empty(redis_server: RedisServer) -> None:
    client = open_redis(redis_server.url)
    beating = asyncio.create_task(registration(client).run())
    observer = open_redis(redis_server.url)

    async def is_known() -> bool:
        return "a" in await members(observer, "worker")

    async with asyncio.timeout(60):
        while not await is_known():
            await asyncio.sleep(0.01)
    redis_server.restart()
    await observer.aclose()
    observer = open_redis(redis_server.url)
    async with asyncio.timeout(60):
        while not await is_known():
            await asyncio.sleep(0.01)
    beating.cancel()
    await until(beating.done)
    await client.aclose()
    await observer.aclose()


async def test_leaving_does_not_fail_while_redis_is_away(redis_server: RedisServer) -> None:
    client = open_redis(redis_server.url)
    await registration(client).beat()
    redis_server.stop()
    await registration(client).withdraw()
    await client.aclose()


def test_an_address_for_everybody_becomes_this_hosts_own() -> None:
    assert reachable_address("unix:/run/s") == "unix:/run/s"
    assert reachable_address("10.0.0.7:80") == "10.0.0.7:80"
    host, _, port = reachable_address("0.0.0.0:81").rpartition(":")
    assert host not in ("", "0.0.0.0")
    assert port == "81"
