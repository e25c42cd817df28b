"""An event loop whose clock jumps to the next timer when nothing else is to be done: seconds without waiting."""

import asyncio


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """For what lives in one process: whoever waits for another one waits for ever."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0

    def time(self) -> float:
        """Seconds since the loop was made."""
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]
