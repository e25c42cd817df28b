"""A timeline's report holds what the trace says, and leaves files to look at."""

import gzip
import json
from pathlib import Path

from benchmarks.gpu_proof.steps_trace import StepsTrace
from benchmarks.gpu_proof.timeline import TimelineOptions, Undisturbed, report_timeline
from tests.benchmarks.gpu_proof.test_steps_trace import steps

COUNTED = Undisturbed(80.0, 20480.0, 12.5, 0.999, 12.0)


def options(out: Path) -> TimelineOptions:
    return TimelineOptions("llama-8b", "cuda", 256, 600, 3400, 3.0, {}, out)


def test_short_gaps_hold_and_are_saved(tmp_path: Path) -> None:
    report = report_timeline(
        options(tmp_path), COUNTED, StepsTrace(steps([7] * 30)), is_unfinished=True, kv="of the weights"
    )
    assert report.holds
    assert report.rows[0]["max"] == 7
    (kept,) = tmp_path.glob("*-steps.json.gz")
    events = json.loads(gzip.decompress(kept.read_bytes()))["traceEvents"]
    assert sum(event["name"] == "_commit_kernel" for event in events) == 5


def test_one_long_gap_or_an_empty_trace_does_not_hold(tmp_path: Path) -> None:
    gaps = [7.0] * 30
    gaps[15] = 21.0
    for events in (steps(gaps), []):
        report = report_timeline(options(tmp_path), COUNTED, StepsTrace(events), is_unfinished=True, kv="fp8")
        assert not report.holds
        assert report.part == "timeline-llama-8b-fp8"
