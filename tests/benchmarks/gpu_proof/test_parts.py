"""Each part runs in small on the CPU, from its command line to its report."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_proof.__main__ import main

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def report_of(part: str, tmp_path: Path, *flags: str) -> dict[str, Any]:
    main([part, "--device", "cpu", "--tiny", "--out", str(tmp_path), *flags])
    (path,) = tmp_path.glob("proof-*.json")
    report: dict[str, Any] = json.loads(path.read_text())
    return report


def test_traffic_has_no_wrong_token_and_leaves_nothing_behind(tmp_path: Path) -> None:
    report = report_of("traffic", tmp_path, "--seconds", "6")
    claims = report["claims"]
    assert claims["no wrong token in greedy requests"]
    assert claims["no wrong token in seeded requests"]
    assert claims["no request failed, no service died"]
    assert claims["rows and blocks are free at the end"]
    assert report["findings"]["greedy"]["num_tokens"] > 0
    assert report["requests"]["cancelled"] > 0


def test_prefills_agree(tmp_path: Path) -> None:
    claims = report_of("agreement", tmp_path)["claims"]
    assert len(claims) == 7
    assert all(claims.values())


def test_the_demo_model_scores_in_every_format(tmp_path: Path) -> None:
    report = report_of("demo", tmp_path)
    assert all(report["claims"].values())
    exact, rounded, fp8 = (row["KL"] for row in report["table"])
    assert exact < 1e-6 < rounded < fp8


def test_the_timeline_is_counted_while_every_row_decodes(tmp_path: Path) -> None:
    report = report_of("timeline", tmp_path)
    assert all(report["claims"].values())
    assert 0 < report["undisturbed"]["gpu_share"] <= 1.01
