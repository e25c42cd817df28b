"""When requests must have ended."""

import heapq
from collections.abc import Iterator
from math import inf

from scheduler_svc.core.sequence import Request


class Deadlines:
    """Requests by deadline. Those that end before it, which is nearly all, are dropped in passing."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._num_watched = 0
        self._compact_at = 64

    def watch(self, deadline: float, request: Request) -> None:
        """Have `request` among the `due` from `deadline` (seconds) on, unless it has ended."""
        self._num_watched += 1
        heapq.heappush(self._heap, (deadline, self._num_watched, request))
        if len(self._heap) > self._compact_at:
            self._heap = [entry for entry in self._heap if entry[2].num_unfinished]
            heapq.heapify(self._heap)
            self._compact_at = max(64, 2 * len(self._heap))

    def due(self, now: float) -> Iterator[Request]:
        """Take out the requests whose deadline has come and that have not ended."""
        while self._heap and self._heap[0][0] <= now:
            request = heapq.heappop(self._heap)[2]
            if request.num_unfinished:
                yield request

    def next(self) -> float:
        """The earliest deadline watched, which may be of a request that ended; inf if there is none."""
        return self._heap[0][0] if self._heap else inf
