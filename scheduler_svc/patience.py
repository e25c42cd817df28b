"""How long a worker that has commands may be silent before it counts as hung."""

_FACTOR = 20.0
# Half of what was learned is forgotten after 138 answers.
_MEMORY = 0.995
_FIRST_ANSWER_S = 60.0


class Patience:
    """Silences are measured from the latest answer, or from the command before which there was nothing to answer.

    `least_s` is enough for a worker of short steps. One of long steps has twenty times its longest silence of late,
    and a worker that was given up has twenty times what it was given: one that is only slow is not given up
    again and again, each time with its work undone. All times are in seconds of a monotonic clock.
    """

    def __init__(self, least_s: float) -> None:
        self._least_s = least_s
        self._longest_s: float | None = None
        self._since = 0.0
        self.num_unanswered = 0

    def begin(self) -> None:
        """A new stream to the worker: nothing is unanswered."""
        self.num_unanswered = 0

    def sent(self, now: float) -> None:
        """A command is on its way."""
        if self.num_unanswered == 0:
            self._since = now
        self.num_unanswered += 1

    def answered(self, now: float) -> None:
        """The oldest command has been answered."""
        self.num_unanswered -= 1
        self._longest_s = max((self._longest_s or 0.0) * _MEMORY, now - self._since)
        self._since = now

    def silent_s(self, now: float) -> float:
        """How long the worker has owed an answer; 0 if it owes none."""
        return now - self._since if self.num_unanswered else 0.0

    @property
    def limit_s(self) -> float:
        """How long it may."""
        if self._longest_s is None:
            return max(_FIRST_ANSWER_S, self._least_s)
        return max(_FACTOR * self._longest_s, self._least_s)

    def give_up(self, now: float) -> None:
        """The worker counts as hung."""
        self._longest_s = max(self._longest_s or 0.0, self.silent_s(now))
