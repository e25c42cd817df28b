"""A peer that no longer answers, and of which no network says that it is gone."""

import asyncio

import pytest

from quire.rpc.channel import KEEPALIVE_TIME_S, KEEPALIVE_TIMEOUT_S
from tests.quire.rpc.test_session import Peer, serve
from tests.support.wire import running_wire


def test_both_ends_find_it_within_ten_seconds() -> None:
    assert KEEPALIVE_TIME_S + KEEPALIVE_TIMEOUT_S < 10


@pytest.mark.slow
async def test_a_session_on_a_dead_wire_is_lost_and_opens_again_when_it_is_mended() -> None:
    server = await serve("127.0.0.1:0")
    async with running_wire(server.address) as wire:
        peer = Peer(wire.address)
        running = asyncio.create_task(peer.session.run())
        try:
            assert await peer.events.get() == "open"
            wire.cut()
            assert await peer.events.get() == "lost"
            wire.mend()
            assert await peer.events.get() == "open"
            peer.submit(1)
            assert await peer.events.get() == 1
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    await server.stop(0)


@pytest.mark.slow
async def test_a_session_on_which_nothing_is_said_stays_open(capfd) -> None:
    """The pings are not too many for the server: it would end the connection after the third."""
    server = await serve("127.0.0.1:0")
    peer = Peer(server.address)
    running = asyncio.create_task(peer.session.run())
    try:
        assert await peer.events.get() == "open"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(peer.events.get(), 5 * KEEPALIVE_TIME_S)
        peer.submit(1)
        assert await peer.events.get() == 1
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.stop(0)
    assert "too_many_pings" not in capfd.readouterr().err
