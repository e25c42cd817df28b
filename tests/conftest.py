"""What tests of several services need."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio as redis

from quire.redis_client import open_redis
from tests.support.redis_server import RedisServer, running_redis


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A real redis-server; skipped where there is none, which is nowhere that `.ci/run` ran."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture(params=["embedded", "server"])
async def redis_client(request: pytest.FixtureRequest) -> AsyncIterator[redis.Redis]:
    """The client of each kind of server that `open_redis` knows."""
    is_real = request.param == "server"
    client = open_redis(request.getfixturevalue("redis_server").url if is_real else "")
    yield client
    await client.aclose()
