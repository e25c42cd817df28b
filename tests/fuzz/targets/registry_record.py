"""A record of the registry in Redis, as everybody reads it who looks for workers and schedulers."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from scheduler_svc.leases import Leases
from scheduler_svc.prefix_index import key_of
from scheduler_svc.redirection import Redirection
from tokenizer_svc.schedulers import Schedulers

WORDS = (
    "address", "epoch", "state", "driven", "lease_epoch", "replicas", "worker", "backlog", "rows", "ready", "draining",
    "127.0.0.1:1", "unix:/tmp/a",
)  # fmt: skip


_LOOP = asyncio.new_event_loop()


class _Client:
    """A Redis with one record."""

    def __init__(self, record: bytes) -> None:
        self._record = record

    async def smembers(self, name: str) -> set[bytes]:
        return {b"a"}

    async def mget(self, names: list[str]) -> list[bytes]:
        return [self._record for _ in names]

    def register_script(self, script: str) -> None:
        return None


class _Index:
    async def count_known(self, workers: list[tuple[str, int]], hashes: Any) -> dict[tuple[str, int], int]:
        for worker, epoch in workers:
            key_of(worker, epoch).encode()
        return {}


def seeds() -> list[bytes]:
    """A worker's, and a scheduler's."""
    replica = {"worker": "w", "epoch": 5, "backlog": 100, "rows": 2}
    records = [
        {"address": "127.0.0.1:1", "epoch": 7, "state": "ready", "driven": True, "lease_epoch": 9},
        {"address": "127.0.0.1:1", "state": "ready", "replicas": [replica, replica]},
    ]
    return [json.dumps(record).encode() for record in records]


def run(data: bytes) -> None:
    """Who looks around is told of a process, or passes the record over."""
    _LOOP.run_until_complete(_look_around(_Client(data)))


async def _look_around(client: Any) -> None:
    workers: Any = SimpleNamespace()
    found = await Leases(client, "me", workers, static={})._registered()
    for worker in found.values():
        worker.address.encode()
        assert 0 <= worker.lease_epoch < 2**53
    redirection = Redirection(client, _Index(), "me")  # type: ignore[arg-type]
    await redirection.look_around()
    address = await redirection.better_address([b"0" * 16], 1000, 16, [])
    if address is not None:
        address.encode()
    await _look_for_schedulers(client)


async def _look_for_schedulers(client: Any) -> None:
    schedulers = Schedulers([], None, resume_s=1, on_batch=lambda: None, on_announcement=lambda: None)
    opened: list[str] = []
    schedulers._open = opened.append  # type: ignore[method-assign]
    await schedulers._look_around(client)
    for address in opened:
        address.encode()
