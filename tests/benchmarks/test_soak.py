"""Half a minute of random traffic through every real service leaves no row, block, queue or file behind."""

import asyncio
from math import inf

import pytest

from benchmarks.service_processes import DEMO_MODEL, REAL_WORKER, service_processes
from benchmarks.soak import SCHEDULER, WORKER, soak
from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def test_nothing_is_left_over(redis_server: RedisServer) -> None:
    with service_processes(
        DEMO_MODEL, WORKER, SCHEDULER, worker_module=REAL_WORKER, redis_url=redis_server.url
    ) as running:
        soaked = asyncio.run(soak(running, None, minutes=0.5, rests=3, lanes=12, seed=1))
    assert soaked.findings(most_growth=inf) == []
    outcomes = soaked.traffic.outcomes
    assert not outcomes["broken"]
    assert not outcomes["500"]
    assert {"200", "400", "left"} <= outcomes.keys()
