"""Half a minute of random traffic through every real service leaves no row, block or queue behind, nor files.

What counts as growth is judged on its own.
"""

import asyncio
from math import inf

import pytest

from benchmarks.service_processes import DEMO_MODEL, REAL_WORKER, service_processes
from benchmarks.soak import SCHEDULER, WORKER, Rest, growth, more_files, soak
from tests.support.redis_server import RedisServer


def _rests(files: list[int], mib: list[int]) -> list[Rest]:
    return [
        Rest(at_s=float(at), rss_bytes=size * 2**20, files=count, threads=1)
        for at, (count, size) in enumerate(zip(files, mib, strict=True))
    ]


def test_a_file_left_open_at_every_rest_is_found_and_a_pool_that_grew_is_not() -> None:
    flat = [100] * 6
    assert more_files(_rests([20, 22, 24, 26, 28, 30], flat)) == 6
    assert more_files(_rests([20, 22, 23, 24, 24, 24], flat)) == 0


def test_growth_is_that_of_the_second_half() -> None:
    files = [1] * 6
    assert growth(_rests(files, [50, 80, 100, 100, 100, 100])) == pytest.approx(0.0, abs=1e-9)
    assert growth(_rests(files, [50, 80, 100, 100, 105, 110])) == pytest.approx(10.0)


@pytest.mark.slow
@pytest.mark.e2e
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
