"""The ledger in Redis: exact sums per tenant, each record once, however often and by whomever it is written."""

import asyncio
from collections.abc import Iterator
from itertools import permutations
from typing import Any
from unittest.mock import patch

import pytest
import redis.asyncio as redis
from fakeredis import FakeAsyncRedis, FakeServer
from redis.asyncio.client import Pipeline

from quire.redis_client import RedisFailure, open_redis
from quire.v1 import types_pb2
from scheduler_svc import metrics, settlement
from scheduler_svc.settlement import COMPUTED_S, COUNTED, SETTLED_S, LedgerRecord, Settlement
from tests.support.redis_server import RedisServer


def record(
    request: str, tenant: str = "t", *, index: int = 0, is_error: bool = False, **usage: Any
) -> LedgerRecord:
    return LedgerRecord.of_end(request, index, tenant, types_pb2.Usage(**usage), is_error=is_error)


async def totals(client: redis.Redis, tenant: str = "t") -> dict[str, int]:
    found = await client.hgetall(f"quire:usage:{tenant}")
    return {name.decode(): int(value) for name, value in found.items()}  # type: ignore[union-attr]


async def settle(client: redis.Redis, name: str, *records: LedgerRecord) -> None:
    ledger = Settlement(client, name)
    for one in records:
        ledger.add(one)
    await ledger.flush()


async def test_every_field_of_every_end_is_added_up_per_tenant(redis_client: redis.Redis) -> None:
    usage = {
        "prompt_tokens": 100, "cached_tokens": 48, "completion_tokens": 7, "computed_tokens": 60,
        "recomputed_tokens": 3, "preemptions": 1, "queue_s": 0.25, "prefill_s": 0.0506, "decode_s": 2.0,
    }  # fmt: skip
    await settle(
        redis_client,
        "s",
        record("a", **usage),
        record("a", index=1, **usage),
        record("b", is_error=True, **usage),
        LedgerRecord.of_refusal("c", "t"),
        record("d", "other", computed_tokens=2**40),
    )
    assert await totals(redis_client) == {
        "requests": 2, "refusals": 1, "errors": 1, "prompt_tokens": 200, "cached_tokens": 96,
        "completion_tokens": 21, "computed_tokens": 180, "recomputed_tokens": 9, "preemptions": 3,
        "queue_ms": 750, "prefill_ms": 153, "decode_ms": 6000,
    }  # fmt: skip
    assert set(await totals(redis_client)) == set(COUNTED)
    assert await totals(redis_client, "other") == {"requests": 1, "computed_tokens": 2**40}


async def test_a_mark_that_is_none_holds_up_no_record(redis_client: redis.Redis) -> None:
    await redis_client.set("quire:settled:a:0", ";=")
    await settle(redis_client, "s", record("a", completion_tokens=7), record("b", completion_tokens=5))
    assert (await totals(redis_client))["completion_tokens"] == 12


@pytest.fixture
def lost_answers() -> Iterator[list[int]]:
    """Every second pipeline is carried out and its answer lost; gives the numbers of those that were."""
    execute, count, lost = Pipeline.execute, 0, []

    async def execute_and_lose(self: Pipeline, raise_on_error: bool = True) -> list[Any]:
        nonlocal count
        answer = await execute(self, raise_on_error)
        count += 1
        if count % 2:
            lost.append(count)
            raise redis.ConnectionError("the answer was lost")
        return answer

    with patch.object(Pipeline, "execute", execute_and_lose):
        yield lost


async def test_a_write_whose_answer_was_lost_counts_nothing_twice(
    redis_client: redis.Redis, lost_answers: list[int]
) -> None:
    ledger = Settlement(redis_client, "s")
    for number in range(5):
        ledger.add(record(f"r{number}", computed_tokens=10, completion_tokens=4))
        ledger.note_computed("w", 10)
        with pytest.raises(RedisFailure):
            await ledger.flush()
        ledger.add(record(f"late{number}", computed_tokens=1))
        ledger.note_computed("w", 1)
        await ledger.flush()
    assert len(lost_answers) == 5
    assert await totals(redis_client) == {"requests": 10, "computed_tokens": 55, "completion_tokens": 20}
    assert await redis_client.hgetall("quire:computed:s") == {b"w": b"55"}


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_a_sequence_that_moved_between_schedulers_is_one_request_with_the_work_of_all(
    redis_client: redis.Redis, order: tuple[int, ...]
) -> None:
    stays = [
        ("first", record("r", prompt_tokens=30, completion_tokens=5, computed_tokens=34)),
        ("second", record("r", prompt_tokens=30, completion_tokens=5, computed_tokens=0)),
        (
            "first",
            record("r", prompt_tokens=30, completion_tokens=9, computed_tokens=38, recomputed_tokens=34),
        ),
    ]
    ledgers = {name: Settlement(redis_client, name) for name in ("first", "second")}
    for position in order:
        name, stay = stays[position]
        ledgers[name].add(stay)
        await ledgers[name].flush()
    assert await totals(redis_client) == {
        "requests": 1,
        "prompt_tokens": 30,
        "completion_tokens": 9,
        "computed_tokens": 72,
        "recomputed_tokens": 34,
    }


async def test_two_stays_of_a_sequence_in_one_write_are_one_request_too(redis_client: redis.Redis) -> None:
    await settle(
        redis_client,
        "s",
        record("r", prompt_tokens=30, completion_tokens=5, computed_tokens=34),
        record("other", prompt_tokens=1),
        record("r", prompt_tokens=30, completion_tokens=9, computed_tokens=38),
    )
    assert await totals(redis_client) == {
        "requests": 2, "prompt_tokens": 31, "completion_tokens": 9, "computed_tokens": 72,
    }  # fmt: skip
    assert await redis_client.get("quire:settled:r:0") == b"9;s=3"


async def test_a_mark_does_not_grow_with_the_records_of_a_sequence(redis_client: redis.Redis) -> None:
    ledgers = [Settlement(redis_client, name) for name in ("first", "second")]
    for number in range(1, 51):
        for ledger in ledgers:
            ledger.add(record("r", completion_tokens=number, computed_tokens=1))
            await ledger.flush()
    assert await redis_client.get("quire:settled:r:0") == b"50;second=50;first=50"
    assert await totals(redis_client) == {"requests": 1, "completion_tokens": 50, "computed_tokens": 100}


async def test_any_number_of_ends_of_a_step_are_one_write(redis_server: RedisServer) -> None:
    client = open_redis(redis_server.url)
    ledger = Settlement(client, "s")
    settling = asyncio.create_task(ledger.run())
    for number in range(100):
        ledger.add(record(f"r{number}", computed_tokens=1))
    async with asyncio.timeout(60):
        while ledger.num_unsettled:
            await asyncio.sleep(0.005)
    calls = await client.info("commandstats")
    assert calls["cmdstat_eval"]["calls"] == 1
    assert await totals(client) == {"requests": 100, "computed_tokens": 100}
    settling.cancel()
    await asyncio.gather(settling, return_exceptions=True)
    await client.aclose()


async def test_records_wait_for_redis_and_the_oldest_of_too_many_are_lost_and_counted(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlement, "MAX_UNSETTLED", 10)
    client = open_redis(redis_server.url)
    ledger = Settlement(client, "s")
    redis_server.stop()
    before = metrics.ledger_lost._value.get()
    for number in range(13):
        ledger.add(record(f"r{number}", computed_tokens=2**number))
        with pytest.raises(RedisFailure):
            await ledger.flush()
    assert metrics.ledger_lost._value.get() - before == 3
    redis_server.start()
    await ledger.flush()
    assert await totals(client) == {"requests": 10, "computed_tokens": 2**13 - 2**3}
    await client.aclose()


async def test_what_is_pushed_out_while_it_is_written_takes_no_other_with_it(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settlement, "MAX_UNSETTLED", 3)
    ledger = Settlement(redis_client, "s")
    for number in range(3):
        ledger.add(record(f"r{number}"))
    writing = asyncio.create_task(ledger.flush())
    await asyncio.sleep(0)  # it has taken the three
    ledger.add(record("r3"))
    ledger.add(record("r4"))
    await writing
    await ledger.flush()
    assert await totals(redis_client) == {"requests": 5}
    assert ledger.num_unsettled == 0


async def test_what_ends_during_a_write_waits_for_the_next(redis_client: redis.Redis) -> None:
    ledger = Settlement(redis_client, "s")
    ledger.add(record("r0"))
    writing = asyncio.create_task(ledger.flush())
    await asyncio.sleep(0)  # it has taken the first
    ledger.add(record("r1"))
    await writing
    assert ledger.num_unsettled == 1
    assert await totals(redis_client) == {"requests": 1}
    await ledger.flush()
    assert await totals(redis_client) == {"requests": 2}


async def test_marks_and_audits_expire_and_totals_do_not(redis_client: redis.Redis) -> None:
    ledger = Settlement(redis_client, "s")
    ledger.note_computed("w", 3)
    ledger.add(record("r"))
    await ledger.flush()
    assert 0 < await redis_client.ttl("quire:settled:r:0") <= SETTLED_S
    assert 0 < await redis_client.ttl("quire:computed:s") <= COMPUTED_S
    assert await redis_client.ttl("quire:usage:t") == -1


async def test_the_embedded_server_drops_marks_that_nobody_looks_at_again() -> None:
    server = FakeServer()
    client = FakeAsyncRedis(server=server)
    await client.set("quire:settled:old:0", "0;s=1", px=1)
    ledger, number = Settlement(client, "s"), 0
    async with asyncio.timeout(60):
        while b"quire:settled:old:0" in server.dbs[0]._dict:
            number += 1
            ledger.add(record(f"r{number}"))
            await ledger.flush()
            await asyncio.sleep(0)
    await client.aclose()
