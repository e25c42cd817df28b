"""Requests that no tokenizer service has: they go on at another, or at the same when it is back.

Of some the service was lost. Others are new, and came when the last ready service of their model had just gone.
"""

import asyncio
from collections.abc import Callable, Iterable

from gateway import metrics
from gateway.live_text import LiveText
from gateway.tokenizer_client import TokenizerClient
from quire.errors import DeadlineExceeded, NotReady, QuireError
from quire.v1 import types_pb2

# As long as a tokenizer service keeps requests without a scheduler.
RESUME_S = 30.0
_LOST = "the connection to the tokenizer service was lost; try again"

Find = Callable[[LiveText], TokenizerClient | None]


class Resumption:
    """Keeps such requests for RESUME_S, and none past its deadline, then ends each with one retryable error.

    `find` gives a service that is ready and serves what a request needs, or None; `refusal` is the error of a request
    that never had a service. Belongs to the event loop.
    """

    def __init__(self, find: Find, refusal: Callable[[], QuireError]) -> None:
        self._find = find
        self._refusal = refusal
        self._homeless: dict[LiveText, asyncio.TimerHandle] = {}
        self._missed: dict[str, tuple[types_pb2.ModelDescription, float]] = {}
        """By name, models whose last ready service went, and when by the loop's clock."""

    @property
    def num_live(self) -> int:
        """Requests that no service has."""
        return len(self._homeless)

    @property
    def awaited(self) -> dict[str, types_pb2.ModelDescription]:
        """Models, by name, that were served within the last RESUME_S and are not now: who asks for one may wait."""
        if not self._missed:
            return {}
        earliest_s = asyncio.get_running_loop().time() - RESUME_S
        return {name: model for name, (model, since_s) in self._missed.items() if since_s > earliest_s}

    def miss(self, model: types_pb2.ModelDescription) -> None:
        """The last ready service of this model has gone."""
        self._missed[model.name] = (model, asyncio.get_running_loop().time())

    def welcome(self, model: types_pb2.ModelDescription) -> None:
        """A service of this model is ready."""
        self._missed.pop(model.name, None)
        self.rehouse()

    def take(self, lost: Iterable[LiveText]) -> None:
        """A service was lost with these."""
        for live in lost:
            if live.lose():
                self.keep(live)
            else:
                self._fail(live)
        self.rehouse()

    def keep(self, live: LiveText) -> None:
        """There is no service for it now."""
        live.home = self
        wait_s = min(RESUME_S, live.left_s)
        self._homeless[live] = asyncio.get_running_loop().call_later(wait_s, self._give_up, live)

    def rehouse(self) -> None:
        """Submit them, with what has come of each, where a service is ready."""
        for live in list(self._homeless):
            client = self._find(live)
            if client is not None:
                self._homeless.pop(live).cancel()
                client.submit(live)
                metrics.requests_resumed.inc()

    def cancel(self, live: LiveText) -> None:
        """See `Home`."""
        timer = self._homeless.pop(live, None)
        if timer is not None:
            timer.cancel()

    def fail_all(self, error: QuireError) -> None:
        """End them with `error`."""
        for live in list(self._homeless):
            live.cancel()
            live.receiver.fail(error)

    def _give_up(self, live: LiveText) -> None:
        del self._homeless[live]
        self._fail(live)

    def _fail(self, live: LiveText) -> None:
        live.home = None
        error: QuireError
        if live.left_s <= 0:
            metrics.requests_ended_early.labels("deadline").inc()
            error = DeadlineExceeded(
                "the request's deadline passed while its tokenizer service was away", param="timeout"
            )
        elif live.was_lost:
            metrics.requests_ended_early.labels("session_lost").inc()
            error = NotReady(_LOST, retry_after_s=1.0)
        else:
            error = self._refusal()
        live.receiver.fail(error)
