"""`quire bench serve` against a running server, and with one of its own."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import API_KEY, REPOSITORY, Server

pytestmark = pytest.mark.e2e


async def bench_serve(*arguments: str, output: Path) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "quire", "bench", "serve", *arguments, "--output", str(output)),
        cwd=REPOSITORY,
        env={**os.environ, "QUIRE_API_KEY": API_KEY, "OMP_NUM_THREADS": "1"},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return await asyncio.to_thread(read_report, output)


def read_report(output: Path) -> dict[str, Any]:
    (report,) = output.glob("*.json")
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def check_times(result: dict[str, Any]) -> None:
    assert (result["completed"], result["errors"]) == (result["requests"], 0)
    assert 0 < result["ttft_ms"]["p50"] <= result["e2e_ms"]["p50"]
    assert result["output_tokens_per_s"] == pytest.approx(
        result["output_tokens"] / result["duration_s"], rel=1e-3
    )
    assert 0 < result["client"]["cpu_share"] < 1
    assert result["goodput_per_s"] <= result["requests_per_s"]


async def test_a_running_server_is_measured_at_each_rate(server: Server, tmp_path: Path) -> None:
    report = await bench_serve(
        *("--url", server.url, "--rate", "20", "--rate", "inf", "--duration", "0.5", "--at-once", "6"),
        *("--prompt-len", "20", "--output-len", "7", "--vocab-size", "700", "--arrivals", "fixed"),
        output=tmp_path,
    )
    assert report["model"] == {"name": "tiny"}
    assert report["rooflines"] is None
    assert API_KEY not in json.dumps(report)
    steady, at_once = report["results"]
    assert [(one["rate"], one["requests"], one["output_tokens"]) for one in (steady, at_once)] == [
        ("20", 10, 70),
        ("inf", 6, 42),
    ]
    for result in (steady, at_once):
        check_times(result)
        assert result["prediction_error_ms"]["requests"] == result["requests"]
    assert steady["duration_s"] > 0.45


async def test_conversations_of_a_file_run_to_the_length_of_their_answers(
    server: Server, tmp_path: Path
) -> None:
    answer = "a reply of some length"
    turns = [{"from": "human", "value": "message and stream and token"}, {"from": "gpt", "value": answer}]
    dataset = tmp_path / "sharegpt.json"
    dataset.write_text(json.dumps([{"conversations": turns}]))
    report = await bench_serve(
        *("--url", server.url, "--rate", "inf", "--at-once", "3", "--dataset", str(dataset)),
        output=tmp_path / "out",
    )
    (result,) = report["results"]
    check_times(result)
    assert result["output_tokens"] % 3 == 0


async def test_a_wrong_key_is_one_clear_line(server: Server, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="401"):
        await bench_serve("--url", server.url, "--api-key", "sk-wrong", output=tmp_path)


async def test_a_server_of_its_own_is_timed_from_its_start(llama: Path, tmp_path: Path) -> None:
    report = await bench_serve(
        *(
            "--model",
            str(llama),
            "--rate",
            "inf",
            "--at-once",
            "4",
            "--prompt-len",
            "12",
            "--output-len",
            "5",
        ),
        *("--server-flag=--max-rows=8",),
        output=tmp_path,
    )
    (result,) = report["results"]
    check_times(result)
    assert report["model"]["max_rows"] == 8
    assert 0 < report["model"]["ready_s"] < report["model"]["first_token_s"]
    assert {"gateway", "tokenizer_svc", "scheduler_svc", "gpu_worker"} == result["server_cpu_s"].keys()
    assert 0 < result["floor_ttft_ms"] < result["ttft_ms"]["p50"]
    predicted = result["prediction_error_ms"]
    assert predicted["requests"] == 4
    assert predicted["mean"] > 0
    assert 0 < predicted["p50"] <= predicted["p90"] <= predicted["p99"]
