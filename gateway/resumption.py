"""Requests whose tokenizer service was lost: they go on at another, or at the same when it is back."""

import asyncio
from collections.abc import Callable, Iterable

import structlog

from gateway import metrics
from gateway.live_text import LiveText
from gateway.tokenizer_client import TokenizerClient
from quire.errors import DeadlineExceeded, NotReady, QuireError
from quire.v1 import types_pb2

log = structlog.get_logger()

# As long as a tokenizer service keeps requests of a lost scheduler.
RESUME_S = 30.0
_LOST = "the connection to the tokenizer service was lost; try again"

Find = Callable[[types_pb2.ModelDescription], TokenizerClient | None]


class Resumption:
    """Keeps such requests for RESUME_S, and none past its deadline, then ends each with one retryable error.

    `find` gives a service that is ready and serves a model, or None. Belongs to the event loop.
    """

    def __init__(self, find: Find) -> None:
        self._find = find
        self._homeless: dict[LiveText, asyncio.TimerHandle] = {}

    @property
    def num_live(self) -> int:
        """Requests that no service has."""
        return len(self._homeless)

    def take(self, lost: Iterable[LiveText]) -> None:
        """A service was lost with these."""
        loop = asyncio.get_running_loop()
        for live in lost:
            if live.lose():
                live.home = self
                self._homeless[live] = loop.call_later(min(RESUME_S, live.left_s), self._give_up, live)
            else:
                _fail(live)
        self.rehouse()

    def rehouse(self) -> None:
        """Submit them again, with what has come of each, where a service is ready."""
        for live in list(self._homeless):
            client = self._find(live.model)
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
        _fail(live)


def _fail(live: LiveText) -> None:
    live.home = None
    reason = "session_lost"
    error: QuireError = NotReady(_LOST, retry_after_s=1.0)
    if live.left_s <= 0:
        reason = "deadline"
        error = DeadlineExceeded(
            "the request's deadline passed while its tokenizer service was lost", param="timeout"
        )
    metrics.requests_ended_early.labels(reason).inc()
    live.receiver.fail(error)
