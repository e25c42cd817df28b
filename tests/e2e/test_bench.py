"""`quire bench` offline: real scheduler and worker processes, and figures that agree with each other."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import REPOSITORY

pytestmark = pytest.mark.e2e


def bench(*arguments: str, output: Path) -> tuple[dict[str, Any], str]:
    """The report that `quire bench` saves, and what it prints."""
    command = [sys.executable, "-m", "quire", "bench", *arguments, "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (report,) = output.glob("*.json")
    return json.loads(report.read_text()), done.stdout


def test_throughput_counts_every_token_and_names_its_conditions(llama: Path, tmp_path: Path) -> None:
    report, printed = bench(
        *("throughput", "--model", str(llama), "--workload", "tiny", "--repeats", "2"),
        *("--requests", "3", "--prompt-len", "40", "--output-len", "5", "--worker", "threads=1"),
        output=tmp_path,
    )
    assert report.keys() == {
        *(
            "kind",
            "model",
            "settings",
            "results",
            "rooflines",
            "machine",
            "versions",
            "time",
            "schema_version",
        )
    }
    assert {"quire", "python", "torch", "grpcio"} <= report["versions"].keys()
    assert {"cpu", "cores", "memory_gib", "load_1min"} <= report["machine"].keys()
    tiny, own = report["results"]
    assert (tiny["workload"], tiny["prompt_tokens"], tiny["output_tokens"]) == ("tiny", 96, 32)
    assert (own["workload"], own["prompt_tokens"], own["output_tokens"]) == ("3x40+5", 120, 15)
    for result in (tiny, own):
        assert len(result["run_seconds"]) == 2
        assert result["seconds"] in result["run_seconds"]
        assert result["output_tokens_per_s"] == pytest.approx(
            result["output_tokens"] / result["seconds"], rel=1e-3
        )
        assert result["floor_s"] == pytest.approx(
            result["floor_prefill_s"] + result["floor_decode_s"], rel=1e-3
        )
        assert result["floor_share"] == pytest.approx(result["floor_s"] / result["seconds"], rel=1e-3)
        assert result["cached_tokens"] == 0
        assert (
            result["tokens_computed"]
            >= result["prompt_tokens"] + result["output_tokens"] - result["requests"]
        )
        assert result["cpu_s"].keys() == {"scheduler_svc", "gpu_worker", "client"}
    assert report["rooflines"]["read_bytes_per_s"] > 0
    assert "3x40+5" in printed


def test_latency_of_a_request_contains_its_first_token(llama: Path, tmp_path: Path) -> None:
    report, _ = bench(
        *("latency", "--model", str(llama), "--batch", "1", "--batch", "3", "--prompt-len", "20"),
        *("--output-len", "6", "--repeats", "2", "--worker", "threads=1"),
        output=tmp_path,
    )
    assert [(result["batch"], result["runs"]) for result in report["results"]] == [(1, 2), (3, 2)]
    for result in report["results"]:
        assert 0 < result["ttft_ms"]["p50"] < result["e2e_ms"]["p50"]
        assert 1 <= result["tokens_per_message"] <= 6
        assert result["floor_ttft_ms"] + 5 * result["floor_tpot_ms"] == pytest.approx(
            result["floor_e2e_ms"], rel=1e-3
        )


def test_every_kernel_is_measured_against_the_device(llama: Path, tmp_path: Path) -> None:
    report, printed = bench(
        *("kernels", "--model", str(llama), "--batch", "1", "--batch", "3", "--context", "40"),
        *("--prompt-len", "33"),
        output=tmp_path,
    )
    by_op = {(result["op"], result["rows"]): result for result in report["results"]}
    assert not [result["error"] for result in report["results"] if "error" in result]
    for op in ("product: qkv", "rms_norm", "rope_kv_write", "attention: decode", "greedy", "logprobs: 20"):
        assert {(op, 1), (op, 3)} <= by_op.keys()
        assert op in printed
    head = by_op["product: head", 3]
    assert head["flops"] == 2 * 3 * 768 * 64
    assert head["share"] == pytest.approx(head["floor_us"] / head["us"])
    # Keys and values of two heads, queries in and out of four; all of 32 numbers of two bytes.
    assert by_op["attention: decode", 3]["bytes"] == 3 * (2 * 2 * 40 + 2 * 4) * 32 * 2
    assert by_op["attention: prefill", 33]["bound"] in ("memory", "compute")


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "quire", "bench", "throughput", "--model", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "none" in done.stderr
