"""Who is there: processes that say so in Redis, again and again, until they stop or die.

Keys: `quire:{kind}s` is a set of ids; `quire:{kind}:{id}` holds a process's record as JSON and expires LIFETIME_S
after its last heartbeat. A record without its key is that of a dead process, and its id is dropped by whoever
sees it.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

import redis.asyncio as redis
import structlog

from quire.redis_client import RedisFailure

log = structlog.get_logger()

HEARTBEAT_S = 0.3
LIFETIME_S = 3.0

Record = Mapping[str, Any]


def _keys(kind: str, member: str) -> tuple[str, str]:
    return f"quire:{kind}s", f"quire:{kind}:{member}"


def reachable_address(listening: str) -> str:
    """The address under which others reach a server that listens at `listening`: host:port, or unix:/path."""
    host, _, port = listening.rpartition(":")
    if listening.startswith("unix:") or host not in ("0.0.0.0", "[::]"):
        return listening
    return f"{socket.gethostbyname(socket.gethostname())}:{port}"


class Registration:
    """One process's entry. `describe` gives its record at each heartbeat."""

    def __init__(
        self, client: redis.Redis, kind: str, member: str, describe: Callable[[], dict[str, Any]]
    ) -> None:
        self._client = client
        self._set, self._key = _keys(kind, member)
        self._member = member
        self._describe = describe

    async def run(self) -> None:
        """Beat until cancelled; a Redis that is away is tried again at the next beat."""
        is_away = False
        while True:
            try:
                await self.beat()
                if is_away:
                    log.info("redis is back", registered=self._key)
                is_away = False
            except RedisFailure as error:
                if not is_away:
                    log.warning("redis is away", registered=self._key, error=str(error))
                is_away = True
            await asyncio.sleep(HEARTBEAT_S)

    async def beat(self) -> None:
        """Say once what this process is. Raises one of `RedisFailure`."""
        record = json.dumps(self._describe())
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.set(self._key, record, px=int(LIFETIME_S * 1000))
            pipeline.sadd(self._set, self._member)
            await pipeline.execute()

    async def withdraw(self) -> None:
        """Leave at once, instead of by expiry."""
        try:
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.delete(self._key)
                pipeline.srem(self._set, self._member)
                await pipeline.execute()
        except RedisFailure:
            return


async def members(client: redis.Redis, kind: str) -> dict[str, Record]:
    """The living processes of a kind, by id; a record that is no JSON object is left out.

    Raises one of `RedisFailure`.
    """
    name = _keys(kind, "")[0]
    ids = sorted(_text(item) for item in await client.smembers(name))
    if not ids:
        return {}
    values = await client.mget([_keys(kind, member)[1] for member in ids])
    dead = [member for member, value in zip(ids, values, strict=True) if value is None]
    if dead:
        await client.srem(name, *dead)
    records = {member: _parse(value) for member, value in zip(ids, values, strict=True) if value is not None}
    return {member: record for member, record in records.items() if record is not None}


def text_of(record: Record, field: str) -> str:
    """A field that is text. Raises KeyError, or ValueError for what is none and what has no UTF-8."""
    value = record[field]
    if not isinstance(value, str):
        raise ValueError(f"{field} is no text")
    value.encode()
    return value


def _parse(value: bytes | str) -> Record | None:
    try:
        record = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
