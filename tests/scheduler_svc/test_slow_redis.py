"""A Redis whose every answer comes, but late: within a client's patience or beyond it."""

import asyncio
from typing import Any

import pytest
import redis.asyncio as redis

from quire.redis_client import TIMEOUT_S, open_redis
from scheduler_svc import leases
from tests.scheduler_svc.test_leases import Scheduler, register
from tests.support.virtual_time import VirtualTimeLoop

DELAY_S = 0.95
assert DELAY_S < TIMEOUT_S


@pytest.fixture
def late_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command, or pipeline of them, is answered late."""

    def late(function: Any) -> Any:
        async def answer(*words: Any, **options: Any) -> Any:
            await asyncio.sleep(DELAY_S)
            return await function(*words, **options)

        return answer

    monkeypatch.setattr(redis.Redis, "execute_command", late(redis.Redis.execute_command))
    monkeypatch.setattr(redis.client.Pipeline, "execute", late(redis.client.Pipeline.execute))


@pytest.mark.usefixtures("late_answers")
def test_leases_are_renewed_before_they_end() -> None:
    async def turn_s() -> float:
        client = open_redis("")
        await register(client, "v", "w")
        schedulers = [Scheduler(client, name) for name in ("first", "second")]
        for scheduler in schedulers:
            await scheduler.register()
        for scheduler in schedulers:
            await scheduler.leases.turn()
        assert [len(scheduler.workers) for scheduler in schedulers] == [1, 1]
        loop = asyncio.get_running_loop()
        before = loop.time()
        await schedulers[0].leases.turn()
        after = loop.time()
        await client.aclose()
        return after - before

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        taken_s = runner.run(turn_s())
    assert taken_s > DELAY_S
    assert taken_s + leases._INTERVAL_S < leases.LEASE_S
