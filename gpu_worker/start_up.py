"""How far a start has come, and what took how long."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import structlog

log = structlog.get_logger()

_SHARES = {"weights": 0.4, "kernels": 0.3, "memory": 0.1, "graphs": 0.15, "warm_up": 0.05}
"""Of a start on a GPU, roughly; elsewhere the weights are nearly all of it."""
_REPORT_EVERY_S = 1.0


class StartUp:
    """Passes phases by, in the order of `_SHARES`; any may be left out."""

    def __init__(self, on_progress: Callable[[float], None]) -> None:
        self.seconds: dict[str, float] = {}
        """Of the phases that are over."""
        self._on_progress = on_progress
        self._done = 0.0
        self._reported = time.monotonic()

    @contextmanager
    def phase(
        self, name: Literal["weights", "kernels", "memory", "graphs", "warm_up"]
    ) -> Iterator[Callable[[float], None]]:
        """Time a phase; what it yields is told the share of the phase that is done, 0 to 1."""
        started = time.monotonic()

        def tell(share: float) -> None:
            self._on_progress(self._done + share * _SHARES[name])
            if time.monotonic() - self._reported > _REPORT_EVERY_S:
                self._reported = time.monotonic()
                log.info("starting", phase=name, percent=round(share * 100))

        yield tell
        tell(1.0)
        self._done += _SHARES[name]
        self.seconds[name] = time.monotonic() - started
