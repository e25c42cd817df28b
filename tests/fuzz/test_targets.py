"""What reads bytes from outside raises nothing but its own clear errors: seconds for each; `make fuzz` for more."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fuzz.runner import TARGETS, fuzz

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("atheris") is None,
        reason="atheris is not installed: its wheels are for Linux on x86-64 and Python 3.11 to 3.13",
    ),
]

# As many as take some seconds.
RUNS = {
    "answer": 1_500,
    "chat": 10_000,
    "gateway_body": 10_000,
    "index_entry": 30_000,
    "keys_file": 10_000,
    "ledger_mark": 500,
    "output_tokens": 1_000,
    "registry_record": 5_000,
    "stream_events": 10_000,
    "token_request": 50_000,
    "worker_command": 3_000,
}


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_found(target: str, tmp_path: Path) -> None:
    outcome = fuzz(target, tmp_path, f"-runs={RUNS[target]}", "-seed=1")
    assert not outcome.has_failed, outcome.log
    assert outcome.executions >= RUNS[target]
    assert outcome.features > 0


def test_a_planted_bug_is_found_and_its_input_kept(tmp_path: Path) -> None:
    outcome = fuzz("tests.fuzz.planted", tmp_path, "-runs=200000", "-seed=1")
    assert outcome.has_failed
    assert "RuntimeError: planted" in outcome.log
    (kept,) = outcome.findings
    assert kept.read_bytes().startswith(b"quire")
