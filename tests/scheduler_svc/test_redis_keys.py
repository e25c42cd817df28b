"""docs/redis.md names every key that a running system makes, with its type and expiry."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis.asyncio as redis

from quire.redis_client import open_redis
from quire.v1 import types_pb2
from scheduler_svc.leases import EPOCH_S, LEASE_S
from scheduler_svc.prefix_index import LIFETIME_S as INDEX_S
from scheduler_svc.settlement import COMPUTED_S, COUNTED, MAX_UNSETTLED, SETTLED_S
from tests.scheduler_svc.conftest import Sockets, generate, running_scheduler, running_worker, token_request
from tests.support.redis_server import RedisServer

PAGE = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
SECONDS = {"s": 1, "hour": 3600, "day": 86_400, "days": 86_400}


class Documented(NamedTuple):
    """A row of the page's table of keys."""

    pattern: str
    type: str
    expires_s: float | None

    def names(self, key: str) -> bool:
        """Whether it is this row that names the key; ids may hold anything."""
        literal = re.split(r"\{\w+\}", self.pattern)
        return re.fullmatch("(.+)".join(map(re.escape, literal)), key) is not None


def documented() -> Iterator[Documented]:
    """Every row."""
    for row in re.findall(r"^\| `(quire:[^`]*)` \|(.*)\|$", PAGE, re.M):
        type_, expiry, *_ = (cell.strip() for cell in row[1].split("|"))
        amount, _, unit = expiry.partition(" ")
        yield Documented(row[0], type_, None if expiry == "never" else float(amount) * SECONDS[unit])


async def named(client: redis.Redis) -> set[str]:
    """The patterns that name the keys there are; fails for a key that none or several name, or name wrongly."""
    found = set()
    for name in await client.keys():
        key = name.decode() if isinstance(name, bytes) else name
        rows = [row for row in documented() if row.names(key)]
        assert len(rows) == 1, f"{key} is documented {len(rows)} times"
        (row,) = rows
        kind, left_ms = await client.type(key), await client.pttl(key)
        if left_ms == -2:
            continue  # it has expired meanwhile
        assert kind.decode() == row.type, key
        if row.expires_s is None:
            assert left_ms == -1, key
        else:
            assert 0 <= left_ms <= row.expires_s * 1000, key
        found.add(row.pattern)
    return found


@pytest.mark.parametrize("worker", ["w", "host/unix:/run/w 1", "a:b{c}"])
async def test_the_page_names_every_key_of_a_running_system(
    sockets: Sockets, redis_server: RedisServer, worker: str
) -> None:
    client = open_redis(redis_server.url)
    async with (
        running_worker(sockets("worker"), worker_id=worker, redis_url=redis_server.url),
        running_scheduler(sockets("scheduler"), redis_url=redis_server.url) as service,
    ):
        await service.until_state(types_pb2.SERVICE_STATE_READY)
        await asyncio.gather(
            *(
                generate(service, token_request([n] * 40, 20, request_id=f"r{n}", tenant=f"tenant {n % 3}"))
                for n in range(9)
            )
        )
        await service.until_free()
        await service.servicer._index.flush()
        await service.servicer._settlement.flush()
        assert await named(client) == {row.pattern for row in documented()}
    await client.aclose()


def test_the_page_says_how_long_keys_live() -> None:
    expiry = {row.pattern: row.expires_s for row in documented()}
    assert expiry["quire:lease:{worker}"] == LEASE_S
    assert expiry["quire:lease-epoch:{worker}"] == EPOCH_S
    assert expiry["quire:blocks:{worker}:{epoch}"] == expiry["quire:blocks-epoch:{worker}"] == INDEX_S
    assert expiry["quire:settled:{sequence}"] == SETTLED_S
    assert expiry["quire:computed:{scheduler}"] == COMPUTED_S


def test_the_page_names_the_fields_of_the_ledger_and_its_bound() -> None:
    assert all(f"`{field}`" in PAGE for field in COUNTED)
    assert f"{MAX_UNSETTLED:,}" in PAGE
