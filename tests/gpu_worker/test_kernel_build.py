"""Kernels are compiled before a start launches them: all of them, under names that other processes find again."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from gpu_worker.kernel_build import KernelBuild
from gpu_worker.models.architectures import decoder_config
from gpu_worker.models.decoder import Decoder
from gpu_worker.models.loader import dummy_parameters
from quire.model_files import read_json
from quire.v1 import worker_pb2
from tests.support.checkpoints import checkpoint
from tests.support.worker_driver import make_runner


@pytest.mark.slow
def test_what_a_start_launches_was_compiled_before(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kernel_build_probe"],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "MALLOC_MMAP_THRESHOLD_": "65536"},
        cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    asked = Counter(found["asked"])
    # Of each file with kernels at least one, in Gluon too.
    for name in (
        "_decode_kernel",
        "_prefill_kernel",
        "_long_prefill_kernel",
        "stream_kernel",
        "finish_kernel",
    ):
        assert asked[name] >= 1
    assert found["misses"] == []
    assert not found["due_again"]


def test_a_cpu_has_nothing_to_compile() -> None:
    config = decoder_config(read_json(checkpoint("LlamaForCausalLM"), "config.json"))
    limits = worker_pb2.WorkerDescription(max_rows=4)
    with KernelBuild(config, limits, torch.float32, torch.device("cpu"), is_fp8=False) as build:
        assert not build.is_due


def test_a_worker_on_the_cpu_needs_no_triton() -> None:
    program = "import sys; sys.modules['triton'] = None; import gpu_worker.server"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)


@pytest.mark.parametrize(
    "error", [RuntimeError("a Triton of another kind"), PermissionError("the cache is read-only")]
)
def test_what_goes_wrong_before_a_launch_is_no_reason_not_to_start(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = checkpoint("LlamaForCausalLM")
    config = decoder_config(read_json(directory, "config.json"))
    limits = worker_pb2.WorkerDescription(max_rows=4)
    build = KernelBuild(config, limits, torch.float32, torch.device("cpu"), is_fp8=False)
    decoder = Decoder(config, dummy_parameters(config, torch.float32, torch.device("cpu")), 64)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(build, "_compile", fail)
    build.run(decoder, lambda _: None)
    assert str(error) in capsys.readouterr().out


def test_a_rehearsal_runs_every_step_and_leaves_no_row() -> None:
    runner = make_runner(checkpoint("Qwen3ForCausalLM"), max_rows=100, max_step_tokens=128)
    runner.rehearse()
    assert runner.rows.num_used == 0
