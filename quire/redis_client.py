"""Redis: a real one by URL, or one inside this process behind the same client."""

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

# Every use is off the step path, and survives a failure: better a short wait than a long one.
TIMEOUT_S = 1.0

RedisFailure = (redis.RedisError, OSError, TimeoutError)
"""What a command may raise when Redis is away or slow."""


def open_redis(url: str) -> redis.Redis:
    """A client for `redis://host:port/db` (or rediss://, unix://); with an empty URL an embedded server.

    Keys and values are bytes. Commands raise one of `RedisFailure` when there is no answer within TIMEOUT_S.
    Raises ValueError for a URL that is none.
    """
    if not url:
        from fakeredis import FakeAsyncRedis

        # It always answers. With a timeout, `asyncio.wait_for` of Python 3.11 would lose cancellations.
        embedded: redis.Redis = FakeAsyncRedis(socket_timeout=None)
        return embedded
    client: redis.Redis = redis.Redis.from_url(
        url,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        # Whoever uses it tries again at its own pace; a retry in here would make a wait many times as long.
        retry=Retry(NoBackoff(), 0),
        health_check_interval=10,
        protocol=2,
    )
    return client
