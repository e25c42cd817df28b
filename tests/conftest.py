"""What tests of several services need."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio as redis
from hypothesis import HealthCheck, settings

from quire import redis_client as redis_client_module
from quire.redis_client import open_redis
from tests.support.redis_server import RedisServer, running_redis

# A busy machine is no failure of what is tested: no example has a time limit, nor has drawing them.
settings.register_profile("quire", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("quire")


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A real redis-server; skipped where there is none, which is nowhere that `.ci/run` ran."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture(params=["embedded", "server"])
async def redis_client(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[redis.Redis]:
    """The client of each kind of server that `open_redis` knows; it waits for as long as a busy machine takes."""
    is_real = request.param == "server"
    monkeypatch.setattr(redis_client_module, "TIMEOUT_S", 60.0)
    client = open_redis(request.getfixturevalue("redis_server").url if is_real else "")
    yield client
    await client.aclose()
