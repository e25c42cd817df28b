"""Tokenizer services behind a name come and go: the gateway finds them, and lets go of them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway import lookup, pool
from gateway.pool import TokenizerPool
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.until import until


class Name:
    """A host name whose addresses a test gives; it is looked up as a real one is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str] = []
        self.is_known = True
        self.num_lookups = 0
        monkeypatch.setattr(pool, "addresses_of", self._addresses_of)
        monkeypatch.setattr(pool, "_LOOKUP_INTERVAL_S", 0.01)

    async def _addresses_of(self, target: str) -> frozenset[str]:
        assert target == "tokenizers:8001"
        self.num_lookups += 1
        if not self.is_known:
            raise socket.gaierror("Name or service not known")
        return frozenset(self.addresses)

    async def looked_up(self) -> None:
        """Return when the pool has seen what the name stands for now."""
        seen = self.num_lookups
        await until(lambda: self.num_lookups >= seen + 2)


@pytest.fixture
def name(monkeypatch: pytest.MonkeyPatch) -> Name:
    return Name(monkeypatch)


@asynccontextmanager
async def running_pool() -> AsyncIterator[TokenizerPool]:
    found = TokenizerPool(["tokenizers:8001"])
    task = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def fakes(count: int) -> AsyncIterator[list[FakeTokenizer]]:
    found = [FakeTokenizer() for _ in range(count)]
    for fake in found:
        await fake.start()
    try:
        yield found
    finally:
        for fake in found:
            await fake.stop()


async def test_a_service_that_joins_a_name_gets_requests(name: Name) -> None:
    async with fakes(2) as (first, second), running_pool() as services:
        name.addresses = [first.address]
        await until(lambda: services.num_ready() == 1)
        name.addresses = [first.address, second.address]
        await until(lambda: services.num_ready() == 2)


async def test_a_service_that_has_left_its_name_and_ended_is_forgotten(name: Name) -> None:
    async with fakes(2) as (first, second), running_pool() as services:
        name.addresses = [first.address, second.address]
        await until(lambda: services.num_ready() == 2)
        name.addresses = [first.address]
        await second.stop()
        await until(lambda: services.num_ready() == 1)
        await name.looked_up()
        assert services.choose(None).address == first.address


async def test_a_service_that_has_left_its_name_finishes_what_it_has(name: Name) -> None:
    async with fakes(1) as (leaving,), running_pool() as services:
        name.addresses = [leaving.address]
        await until(lambda: services.num_ready() == 1)
        name.addresses = []
        await name.looked_up()
        assert services.choose(None).connected


async def test_a_name_service_that_is_away_costs_no_session(name: Name) -> None:
    async with fakes(1) as (living,), running_pool() as services:
        name.addresses = [living.address]
        await until(lambda: services.num_ready() == 1)
        name.is_known = False
        await name.looked_up()
        assert services.num_ready() == 1


@pytest.mark.parametrize("target", ["unix:/run/tokenizer", "10.1.2.3:8001", "[::1]:8001"])
async def test_an_address_needs_no_lookup(target: str) -> None:
    assert await lookup.addresses_of(target) == {target}


async def test_a_host_of_both_families_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    four, six = (socket.AF_INET, ("127.0.0.1", 8001)), (socket.AF_INET6, ("::1", 8001, 0, 0))

    async def addresses(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(family, socket.SOCK_STREAM, 6, "", address) for family, address in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
    found = [six, four]
    assert await lookup.addresses_of("localhost:8001") == {"127.0.0.1:8001"}
    found = [six]
    assert await lookup.addresses_of("localhost:8001") == {"[::1]:8001"}


async def test_a_name_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(OSError, match=r"[Nn]ame|[Tt]emporary"):
        await lookup.addresses_of("no-such-host.invalid:8001")
