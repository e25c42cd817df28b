"""Gaps between steps are measured from last kernels to first ones, whatever the trace holds besides."""

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.gpu_proof.steps_trace import Event, StepsTrace, read_events
from benchmarks.gpu_proof.trace_plot import draw


def event(name: str, start: float, duration: float, category: str = "kernel") -> Event:
    return {"name": name, "cat": category, "ph": "X", "ts": start, "dur": duration, "pid": 0, "tid": 7}


def steps(gaps: list[float]) -> list[Event]:
    """Steps of 100 us, the gaps between them, and a copy of 1 us in each gap."""
    events, at = [], 1000.0
    for gap in [*gaps, 0.0]:
        events += [
            event("_begin_kernel", at, 2),
            event("nvjet_sm90", at + 3, 90),
            event("_commit_kernel", at + 98, 2),
        ]
        at += 100 + gap
        events.append(event("Memcpy HtoD", at - gap + 1, 1, "gpu_memcpy"))
    return events


def test_gaps_are_those_between_whole_steps_inside_of_the_window() -> None:
    trace = StepsTrace(steps([50, 5, 7, 6, 9, 80]))
    assert trace.gaps_us == pytest.approx([5, 7, 6, 9])
    gaps = trace.gaps()
    assert (gaps.p50, gaps.most) == pytest.approx((6.5, 9))
    assert gaps.share == pytest.approx(27 / 527)
    assert gaps.holds == {"Memcpy HtoD": 4}


def test_the_time_in_which_something_runs_counts_overlaps_once() -> None:
    events = steps([10] * 4)
    beside = [event("Memcpy DtoH", item["ts"] + 10, 20, "gpu_memcpy") for item in events[::4]]
    trace = StepsTrace(sorted([*events, *beside], key=lambda item: item["ts"]))
    # Of each 100 us step 94 are kernels, of each gap of 10 one is a copy.
    assert trace.gaps().busy_share == pytest.approx((3 * 94 + 2) / 320)


def test_an_end_without_a_beginning_is_no_step() -> None:
    events = [event("_commit_kernel", 0, 2), *steps([4] * 5)]
    assert len(StepsTrace(events).steps) == 4


def test_too_few_steps_are_an_error() -> None:
    with pytest.raises(ValueError, match="whole steps"):
        StepsTrace(steps([3])).gaps()


def test_only_what_ran_on_the_gpu_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "trace.json.gz"
    others = [{"name": "process_name", "ph": "M"}, event("aten::mm", 0, 5, "cpu_op")]
    events = [*reversed(steps([4] * 3)), *others]
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    assert read_events(path) == sorted(steps([4] * 3), key=lambda item: item["ts"])


def test_some_steps_in_the_middle_are_kept_and_drawn(tmp_path: Path) -> None:
    trace = StepsTrace(steps([4] * 9))
    kept = trace.middle(5)
    assert sum(item["name"] == "_commit_kernel" for item in kept) == 5
    path = draw(trace, tmp_path / "steps.png", title="256 rows")
    assert path is None or path.stat().st_size > 5000
