"""Sequences that wait for a row: ordered by priority, then age; bounded by number and by tokens."""

import heapq
from math import ceil

from quire.errors import Overloaded
from scheduler_svc.core.sequence import Sequence

_MIN_RETRY_S = 1.0
_MAX_RETRY_S = 60.0


class WaitingQueue:
    """A heap with lazy removal. A preempted sequence keeps its age, and so comes back at the front."""

    def __init__(self, max_sequences: int, max_tokens: int) -> None:
        self._max_sequences = max_sequences
        self._max_tokens = max_tokens
        self._heap: list[tuple[int, int, Sequence]] = []
        self._waiting: set[Sequence] = set()
        self.num_tokens = 0
        """Tokens still to compute of all that wait."""

    def __len__(self) -> int:
        return len(self._waiting)

    def check_room(self, num_sequences: int, num_tokens: int, tokens_per_s: float) -> None:
        """Raise Overloaded unless a new request of this size may wait.

        An empty queue takes any request. `tokens_per_s` is the speed at which replicas compute prompts (0 if
        unknown); it makes the time after which trying again makes sense.
        """
        if not self._waiting:
            return
        if len(self._waiting) + num_sequences > self._max_sequences:
            what = f"{len(self._waiting)} sequences wait, of at most {self._max_sequences}"
        elif self.num_tokens + num_tokens > self._max_tokens:
            what = f"{self.num_tokens} tokens wait, of at most {self._max_tokens}"
        else:
            return
        retry_after_s = _MIN_RETRY_S
        if tokens_per_s > 0.0:
            retry_after_s = min(max(float(ceil(self.num_tokens / tokens_per_s)), _MIN_RETRY_S), _MAX_RETRY_S)
        raise Overloaded(f"the queue is full: {what}", retry_after_s=retry_after_s)

    def push(self, sequence: Sequence) -> None:
        """Let a sequence wait; those that ran before are never refused."""
        heapq.heappush(self._heap, (sequence.request.priority, sequence.order, sequence))
        self._waiting.add(sequence)
        self.num_tokens += len(sequence.token_ids)

    def peek(self) -> Sequence | None:
        """The sequence that is next, or None."""
        while self._heap:
            sequence = self._heap[0][2]
            if sequence in self._waiting:
                return sequence
            heapq.heappop(self._heap)
        return None

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands."""
        self._waiting.remove(sequence)
        self.num_tokens -= len(sequence.token_ids)
        # Those removed from the middle stay in the heap until they surface, at most as many as wait.
        if len(self._heap) > 2 * len(self._waiting) + 16:
            self._heap = [entry for entry in self._heap if entry[2] in self._waiting]
            heapq.heapify(self._heap)

    def check_integrity(self) -> None:
        """Assert that the sums are those of what waits."""
        assert self.num_tokens == sum(len(s.token_ids) for s in self._waiting)
        assert self._waiting <= {entry[2] for entry in self._heap}
