"""What a command costs the worker's host: from its bytes to the launches, and from the device's results to bytes.

    python -m benchmarks.worker_host --rows 1 64 256 512

The model is left out: the decoder's steps do nothing, every row reports a token. On a GPU the launches themselves come
on top, which `benchmarks.decode_profile` shows as time that the GPU stands still, if any.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from gpu_worker.loading import load
from gpu_worker.model_runner import ModelRunner
from gpu_worker.settings import WorkerSettings
from quire.local import demo_model
from quire.packing import pack_int32, pack_uint32
from quire.v1 import types_pb2, worker_pb2

_PROMPT = 64
_FIRST_BLOCKS = 16
_REPEATS = 50


class IdleSteps:
    """Takes the place of `ModelSteps`: batches are set, nothing is computed."""

    def __init__(self, steps: Any, max_rows: int) -> None:
        self.batch_rows = steps.batch_rows
        self.set_batch = steps.set_batch
        self._logits = torch.zeros(max_rows, 1)

    def decode(self, size: int, kind: int) -> None:
        """A decode step."""

    def mixed_logits(self, decode_rows: torch.Tensor, prefill: object) -> torch.Tensor:
        """A step with prompts."""
        return self._logits

    def draw(self, *batch: object) -> None:
        """Tokens of a step."""


class Host:
    """A worker without a model, and the commands of a batch of `num_rows`."""

    def __init__(self, num_rows: int) -> None:
        settings = WorkerSettings(
            model=str(demo_model()), device="cpu", max_rows=num_rows, max_step_tokens=num_rows * _PROMPT,
            kv_cache_memory="256MiB", threads=1,
        )  # fmt: skip
        self._runner: ModelRunner = load(settings, 1, lambda _: None).runner
        self._runner._steps = IdleSteps(self._runner._steps, num_rows)  # type: ignore[assignment]
        self._rows = np.arange(num_rows, dtype=np.uint32)
        self._step_id = 0

    def add(self) -> worker_pb2.StepCommand:
        """Every row leaves, and comes with a new prompt."""
        sampling = types_pb2.SamplingParams(
            temperature=0.8, top_p=0.95, seed=1, stop_token_ids=pack_int32([1, 2])
        )
        added = worker_pb2.RowAdd(
            token_ids=pack_int32([5] * _PROMPT), num_prompt_tokens=_PROMPT, max_total_tokens=2000, sampling=sampling,
            block_ids=pack_int32(range(_FIRST_BLOCKS)),
        )  # fmt: skip
        command = worker_pb2.StepCommand(
            remove_rows=self._rows[: self._runner.rows.num_used].tobytes(),
            prefill_rows=self._rows.tobytes(),
            prefill_num_tokens=pack_uint32([_PROMPT] * len(self._rows)),
            decode_steps=1,
        )
        for row in self._rows.tolist():
            added.row = row
            command.add_rows.append(added)
        return command

    def decode(self, share: float = 1 / 16) -> worker_pb2.StepCommand:
        """A decode step, before which a share of the rows get a block."""
        growing = self._rows[: round(len(self._rows) * share)]
        return worker_pb2.StepCommand(
            append_rows=growing.tobytes(),
            append_num_blocks=pack_uint32([1] * len(growing)),
            append_block_ids=pack_int32([7] * len(growing)),
            decode_steps=1,
        )

    def measure(self, make: Callable[[], worker_pb2.StepCommand]) -> tuple[float, float]:
        """Microseconds, medians: from bytes to launched, and from results to bytes."""
        launching, retiring = [], []
        for _ in range(_REPEATS):
            self._step_id += 1
            command = make()
            command.step_id = self._step_id
            received = command.SerializeToString()
            started = time.perf_counter()
            step = self._runner.launch(worker_pb2.StepCommand.FromString(received))
            launched = time.perf_counter()
            step.slot._host_results.zero_()
            copied = time.perf_counter()
            step.wait().SerializeToString()
            launching.append(launched - started)
            retiring.append(time.perf_counter() - copied)
        return median(launching) * 1e6, median(retiring) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256, 512])
    arguments = parser.parse_args()
    print("microseconds per command: to the launch, from the results")
    for num_rows in arguments.rows:
        host = Host(num_rows)
        cases: dict[str, Callable[[], worker_pb2.StepCommand]] = {
            "all rows come and go": host.add,
            "decode": host.decode,
            "decode, all rows grow": partial(host.decode, 1.0),
        }
        for name, make in cases.items():
            launch_us, retire_us = host.measure(make)
            print(f"{num_rows:5} rows  {name:22} {launch_us:8.0f} {retire_us:8.0f}", flush=True)


if __name__ == "__main__":
    main()
