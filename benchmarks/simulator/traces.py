"""What clients do: conversations of one or more turns, drawn from a seed.

Lengths are tokens, times seconds. Everything is drawn before the simulation starts, so that a trace is the same
for every policy; only the time of a later turn depends on when the reply before it came.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quire.v1 import types_pb2

Tokens = NDArray[np.int32]
Range = tuple[int, int]
"""Least and most, both included; drawn uniformly."""

_VOCAB = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One request of a conversation: its prompt is all that was said before, and `message`."""

    message: Tokens
    output_tokens: int
    think_s: float = 0.0
    """Seconds between the end of the reply before and this request; unused in the first turn."""
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """Requests of one user, one after the other. It is over when one of them fails."""

    arrival_s: float
    turns: tuple[Turn, ...]
    tenant: str = "default"
    group: str = "all"
    """Under which its figures are reported."""


@dataclass(frozen=True, slots=True)
class Trace:
    """All that arrives in one simulation."""

    name: str
    conversations: tuple[Conversation, ...]
    tenant_policies: Mapping[str, types_pb2.TenantPolicy] = field(default_factory=dict)
    """What tenants are entitled to, those left out to the same as anybody."""


class Draw:
    """Random lengths, tokens and arrival times from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def length(self, low_high: Range) -> int:
        """A number from the range."""
        return int(self._random.integers(low_high[0], low_high[1] + 1))

    def tokens(self, low_high: Range) -> Tokens:
        """Random tokens, their number from the range."""
        return self._random.integers(10, _VOCAB, self.length(low_high), dtype=np.int32)

    def seconds(self, mean: float) -> float:
        """An exponentially distributed time."""
        return float(self._random.exponential(mean))

    def uniform(self, low: float, high: float) -> float:
        """A number between the two."""
        return float(self._random.uniform(low, high))

    def index(self, count: int) -> int:
        """One of `count`."""
        return int(self._random.integers(count))

    def arrivals(self, rate: float, duration_s: float) -> Iterator[float]:
        """Arrival times of a Poisson process, `rate` per second."""
        now = self.seconds(1.0 / rate)
        while now < duration_s:
            yield now
            now += self.seconds(1.0 / rate)


def poisson(
    draw: Draw,
    *,
    rate: float,
    duration_s: float,
    prompt: Range,
    output: Range,
    tenant: str = "default",
    group: str = "all",
    timeout_s: tuple[float, float] | None = None,
) -> Iterator[Conversation]:
    """Requests that have nothing to do with each other, `rate` per second; deadlines uniform in `timeout_s`."""
    for arrival_s in draw.arrivals(rate, duration_s):
        deadline_s = None if timeout_s is None else draw.uniform(*timeout_s)
        turn = Turn(draw.tokens(prompt), draw.length(output), timeout_s=deadline_s)
        yield Conversation(arrival_s, (turn,), tenant, group)


def chat(
    draw: Draw,
    *,
    rate: float,
    duration_s: float,
    turns: Range,
    system: Range,
    message: Range,
    output: Range,
    think_s: float,
) -> Iterator[Conversation]:
    """Conversations of several turns, `rate` new ones per second, each with a system prompt of its own."""
    for arrival_s in draw.arrivals(rate, duration_s):
        opening = np.concatenate([draw.tokens(system), draw.tokens(message)])
        later = [
            Turn(draw.tokens(message), draw.length(output), think_s=draw.seconds(think_s))
            for _ in range(draw.length(turns) - 1)
        ]
        yield Conversation(arrival_s, (Turn(opening, draw.length(output)), *later))


def shared_system(
    draw: Draw,
    *,
    rate: float,
    duration_s: float,
    num_systems: int,
    system: Range,
    user: Range,
    output: Range,
    tenant: str = "default",
    group: str = "all",
) -> Iterator[Conversation]:
    """Single requests under a few long system prompts, some of which are far more popular than others (1/rank)."""
    systems = [draw.tokens(system) for _ in range(num_systems)]
    shares = 1.0 / np.arange(1, num_systems + 1)
    bounds = np.cumsum(shares / shares.sum())
    for arrival_s in draw.arrivals(rate, duration_s):
        chosen = systems[min(int(np.searchsorted(bounds, draw.uniform(0.0, 1.0))), num_systems - 1)]
        turn = Turn(np.concatenate([chosen, draw.tokens(user)]), draw.length(output))
        yield Conversation(arrival_s, (turn,), tenant, group)


def burst(
    draw: Draw, *, at_s: float, count: int, prompt: Range, output: Range, tenant: str, group: str = ""
) -> Iterator[Conversation]:
    """`count` requests of one tenant at the same moment; without a name for their group it is the tenant's."""
    for _ in range(count):
        yield Conversation(at_s, (Turn(draw.tokens(prompt), draw.length(output)),), tenant, group or tenant)
