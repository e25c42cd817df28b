"""How fast a replica is, measured from its results; all figures are smoothed and 0 while unknown."""

from quire.v1 import worker_pb2

_SMOOTHING = 0.2
# Steps with prompts and steps without alternate, and differ: what a row waits for is the mean of many.
_SLOW_SMOOTHING = 0.02
_RATE_WINDOW_S = 1.0
# Prompt positions that take about as long as the weights' reading, on most devices: fewer are counted as less.
_TELLING_TOKENS = 256
# So many times its steps' own time a command takes if it is not the steps that set it.
_OVERHEAD_BOUND = 1.2
_COMMAND_SMOOTHING, _COMMAND_DECAY = 0.5, 0.99
# What is seen above it is a worker that was held up, not what its commands cost.
_MOST_COMMAND_S = 0.003


class Speed:
    """Step times and the rate at which rows come free."""

    def __init__(self) -> None:
        self.decode_step_s = 0.0
        """Seconds of a step that only decodes."""
        self.token_s = 0.0
        """Seconds of a step in which rows decode, whatever prompts are computed beside them."""
        self.prefill_token_s = 0.0
        """Seconds that each prompt position adds to a step."""
        self.command_s = 0.0
        """Seconds that a command costs worker and scheduler however short its steps are, as last seen."""
        self.releases_per_s = 0.0
        """Rows that come free per second."""
        self._told = 0.0
        """Steps of many prompt positions, or as many of few as say as much."""
        self._released = 0
        self._since: float | None = None

    def forget_steps(self) -> None:
        """Another process answers now."""
        self.decode_step_s = self.token_s = self.prefill_token_s = self.command_s = self._told = 0.0

    def note_step(self, result: worker_pb2.StepResult, decode_steps: int, prefill_tokens: int) -> None:
        """A command of so many decode steps and prompt positions has retired."""
        if result.step_s <= 0.0:
            return
        if decode_steps and result.rows:
            self.token_s = _smooth(self.token_s, result.step_s / decode_steps, _SLOW_SMOOTHING)
        if not prefill_tokens:
            if decode_steps and result.rows:
                self.decode_step_s = _smooth(self.decode_step_s, result.step_s / decode_steps)
            return
        # A step takes at least what its prompts alone would, and at most as long as its prompts and a step that decodes
        # one after the other. Short chunks, which hide behind the weights' reading, leave these bounds far apart; the
        # rest of a prompt of which nearly all is cached says next to nothing.
        least = max(0.0, result.step_s - max(1, decode_steps) * self.decode_step_s) / prefill_tokens
        most = result.step_s / prefill_tokens
        known = self.prefill_token_s or (least + most) / 2
        weight = min(1.0, prefill_tokens / _TELLING_TOKENS)
        self._told += weight
        # As long as nothing else has told much, what tells a little counts.
        smoothing = max(weight * _SMOOTHING, weight / self._told)
        self.prefill_token_s = _smooth(known, min(max(known, least), most), smoothing)

    def note_interval(self, interval_s: float, step_s: float) -> None:
        """Two results came one after the other, with commands in flight all the while; the later one's took step_s.

        Where the steps set the interval nothing is seen of the rest, so what was seen is slowly forgotten.
        """
        if interval_s > _OVERHEAD_BOUND * step_s:
            self.command_s += _COMMAND_SMOOTHING * (min(interval_s, _MOST_COMMAND_S) - self.command_s)
        else:
            self.command_s = _COMMAND_DECAY * min(self.command_s, interval_s)

    def note_release(self, now: float, *, wanted: bool) -> None:
        """A row has come free at `now` (seconds); only while others want rows does the rate say anything."""
        if not wanted:
            self._released, self._since = 0, None
            return
        if self._since is None:
            self._since = now
        self._released += 1
        elapsed_s = now - self._since
        if elapsed_s >= _RATE_WINDOW_S:
            self.releases_per_s = _smooth(self.releases_per_s, self._released / elapsed_s)
            self._released, self._since = 0, now


def _smooth(old: float, new: float, smoothing: float = _SMOOTHING) -> float:
    return new if old == 0.0 else old + smoothing * (new - old)
