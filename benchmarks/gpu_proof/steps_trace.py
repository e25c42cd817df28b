"""Steps in a trace of the GPU's work: where one ends, where the next begins, and what lies between."""

import gzip
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FIRST_KERNEL, LAST_KERNEL = "_begin_kernel", "_commit_kernel"
"""Of a step's graph: rows are read, tokens are written back (`kernels/decode_rows`)."""
_ON_THE_GPU = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_FIELDS = ("name", "cat", "ph", "ts", "dur", "pid", "tid")

Event = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """Microseconds on the trace's clock."""

    start_us: float
    end_us: float


@dataclass(frozen=True)
class Gaps:
    """Between steps, in microseconds."""

    p50: float
    p99: float
    most: float
    share: float
    """Of the time from the first step's start to the last one's end."""
    busy_share: float
    """Of the same time, that at least one kernel or copy ran; between kernels of one graph it stands too."""
    holds: dict[str, int]
    """What ran inside of gaps, by name."""


def read_events(path: Path) -> list[Event]:
    """What ran on the GPU, in the order of its starts, from a trace in Chrome's format, gzipped."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    found = [event for event in events if event.get("ph") == "X" and event.get("cat") in _ON_THE_GPU]
    return sorted(found, key=lambda event: float(event["ts"]))


class StepsTrace:
    """The whole steps of a trace, without the first and the last one, during which the profiler came or went."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self.steps = _steps(events)[1:-1]

    @property
    def gaps_us(self) -> list[float]:
        """From each step's end to the next one's start."""
        pairs = zip(self.steps, self.steps[1:], strict=False)
        return [after.start_us - before.end_us for before, after in pairs]

    def gaps(self) -> Gaps:
        """Raises ValueError where there are not two steps."""
        if len(self.steps) < 2:
            raise ValueError(f"{len(self.steps)} whole steps in {len(self.events)} events of the GPU")
        first, last = self.steps[0].start_us, self.steps[-1].end_us
        return Gaps(
            p50=float(np.percentile(self.gaps_us, 50)),
            p99=float(np.percentile(self.gaps_us, 99)),
            most=max(self.gaps_us),
            share=sum(self.gaps_us) / (last - first),
            busy_share=_covered(self.events, first, last) / (last - first),
            holds=self._between(),
        )

    def _between(self) -> dict[str, int]:
        found: Counter[str] = Counter()
        pairs = iter(zip(self.steps, self.steps[1:], strict=False))
        pair = next(pairs, None)
        for event in self.events:
            while pair is not None and event["ts"] >= pair[1].start_us:
                pair = next(pairs, None)
            if pair is not None and event["ts"] >= pair[0].end_us:
                found[str(event["name"])[:60]] += 1
        return dict(found)

    def middle(self, count: int) -> list[Event]:
        """The events of some steps in the middle, with what viewers need of them."""
        if not self.steps:
            return []
        first = max(0, (len(self.steps) - count) // 2)
        kept = self.steps[first : first + count]
        return [
            {name: event[name] for name in _FIELDS}
            for event in self.events
            if kept[0].start_us <= event["ts"] <= kept[-1].end_us
        ]


def _steps(events: Sequence[Event]) -> list[Step]:
    """From each first kernel to the last kernel after it."""
    steps, start = [], None
    for event in events:
        if FIRST_KERNEL in event["name"]:
            start = float(event["ts"])
        elif LAST_KERNEL in event["name"] and start is not None:
            steps.append(Step(start, float(event["ts"]) + float(event["dur"])))
            start = None
    return steps


def _covered(events: Sequence[Event], first: float, last: float) -> float:
    """Microseconds between `first` and `last` in which at least one event runs; events in the order of their starts."""
    covered, reached = 0.0, first
    for event in events:
        start, end = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        start, end = max(start, reached), min(end, last)
        if end > start:
            covered += end - start
            reached = end
    return covered
