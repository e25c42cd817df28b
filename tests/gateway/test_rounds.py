"""Rounds of writes: at once when idle, at most half of the time when busy."""

import asyncio
import time

from gateway.rounds import WriteRounds


async def turns(number: int) -> None:
    """Let the event loop go round."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_an_idle_gateway_wakes_at_once() -> None:
    rounds, woken = WriteRounds(), []
    rounds.add(lambda: woken.append("a"))
    assert woken == []
    await turns(1)
    assert woken == ["a"]


async def test_what_is_added_together_is_woken_together() -> None:
    rounds, woken = WriteRounds(), []
    for name in "abc":
        rounds.add(lambda name=name: woken.append(name))  # type: ignore[misc]
    await turns(1)
    assert woken == ["a", "b", "c"]


async def test_next_round_waits_as_long_as_the_last_one_took() -> None:
    rounds = WriteRounds()
    ended: list[float] = []
    began = asyncio.get_running_loop().create_future()

    def slow() -> None:
        time.sleep(0.05)
        ended.append(time.perf_counter())

    rounds.add(slow)
    await turns(3)
    assert len(ended) == 1
    rounds.add(lambda: began.set_result(time.perf_counter()))
    # No upper bound: a busy machine may be late, but never early.
    assert await began - ended[0] >= 0.045
