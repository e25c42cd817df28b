"""Wakes event streams in rounds, so that deltas coalesce exactly as much as the load asks for.

A write to a socket costs some 15 µs, however many tokens it carries. Were every delta written when it
comes, a gateway slower than its models would fall behind without bound: the messages it has not read would
wait in gRPC's buffers. So a round of writes starts no sooner after the last one than that one took. An idle
gateway writes each token at once (a round of one stream takes microseconds); a busy one spends at most half
its time on writes, reads all that comes in the other half, and tokens that arrive in between share a chunk.
"""

import asyncio
import time
from collections.abc import Callable


class WriteRounds:
    """Calls the wakers it is given, in rounds. Belongs to one event loop."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._scheduled = False
        self._not_before_s = 0.0

    def add(self, waker: Callable[[], None]) -> None:
        """Call `waker` in the next round; the caller adds it once per round."""
        self._waiting.append(waker)
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        loop = asyncio.get_running_loop()
        wait_s = self._not_before_s - time.perf_counter()
        if wait_s > 0:
            loop.call_later(wait_s, self._run)
        else:
            loop.call_soon(self._run)

    def _run(self) -> None:
        started_s = time.perf_counter()
        waiting, self._waiting = self._waiting, []
        for waker in waiting:
            waker()
        # The woken tasks were put in the loop's queue just now; this call stands behind them.
        asyncio.get_running_loop().call_soon(self._finish, started_s)

    def _finish(self, started_s: float) -> None:
        now_s = time.perf_counter()
        self._not_before_s = now_s + (now_s - started_s)
        self._scheduled = False
        if self._waiting:
            self._schedule()
