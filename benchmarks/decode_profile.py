"""Where the time of a step goes on the GPU: decode steps and prefills of the worker's model runner, without services.

    python -m benchmarks.decode_profile --model qwen3-0.6b --batch 1 256 --context 700 --out DIRECTORY

prints, for each batch size, the GPU time of a decode step (commands run ahead of one another), the share of the time
that the GPU stood still between steps, and the kernels that took most; then the rate of a prefill of whole steps.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from gpu_worker.loading import LoadedWorker, load
from gpu_worker.settings import WorkerSettings
from quire.bench.shapes import write_shape
from quire.packing import pack_int32, pack_uint32
from quire.v1 import types_pb2, worker_pb2

_AHEAD = 2
_STEPS = 8
_COMMANDS = 12
_TOP = 14


class Driver:
    """Sends commands as the scheduler would, keeping two in flight."""

    def __init__(self, worker: LoadedWorker, temperature: float) -> None:
        self._worker = worker
        self._temperature = temperature
        self._step_id = 0
        self._rows: list[int] = []

    def add(self, num_rows: int, context: int, output: int) -> float:
        """Rows with prompts of `context` tokens, prefilled in full steps; returns seconds on the GPU."""
        description = self._worker.description
        per_row = -(-(context + output) // description.block_size)
        tokens = np.random.default_rng(0).integers(10, 1000, context).astype(np.int32)
        at_once, seconds = max(1, description.max_step_tokens // context), 0.0
        for first in range(0, num_rows, at_once):
            rows = list(range(first, min(first + at_once, num_rows)))
            adds = [
                worker_pb2.RowAdd(
                    row=row,
                    token_ids=pack_int32(np.roll(tokens, row)),
                    num_prompt_tokens=context,
                    block_ids=pack_int32(range(row * per_row, (row + 1) * per_row)),
                    max_total_tokens=context + output,
                    sampling=types_pb2.SamplingParams(
                        temperature=self._temperature, seed=row, ignore_eos=True
                    ),
                )
                for row in rows
            ]
            seconds += self._run(
                worker_pb2.StepCommand(
                    add_rows=adds,
                    prefill_rows=pack_uint32(rows),
                    prefill_num_tokens=pack_uint32([context] * len(rows)),
                )
            )
        self._rows = list(range(num_rows))
        return seconds

    def clear(self) -> None:
        """Remove every row."""
        self._run(worker_pb2.StepCommand(remove_rows=pack_uint32(self._rows)))

    def decode(self, commands: int) -> tuple[float, float]:
        """Seconds on the GPU and on the clock of `commands` commands of _STEPS steps."""
        launched: deque[Any] = deque()
        gpu_s, started = 0.0, time.perf_counter()
        for _ in range(commands):
            self._step_id += 1
            command = worker_pb2.StepCommand(step_id=self._step_id, decode_steps=_STEPS)
            launched.append(self._worker.runner.launch(command))
            if len(launched) > _AHEAD:
                gpu_s += launched.popleft().wait().step_s
        while launched:
            gpu_s += launched.popleft().wait().step_s
        return gpu_s, time.perf_counter() - started

    def _run(self, command: worker_pb2.StepCommand) -> float:
        self._step_id += 1
        command.step_id = self._step_id
        result = self._worker.runner.launch(command).wait()
        if result.errors:
            raise RuntimeError(str(result.errors[0]))
        return float(result.step_s)


def measure(driver: Driver, batch: int, context: int) -> dict[str, Any]:
    """One batch size."""
    output = _STEPS * (_COMMANDS + 4) + 2
    activity = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
    prefill_s = driver.add(batch, context, output)
    driver.clear()
    with profile(activities=[activity]) as prefilled:
        driver.add(batch, context, output)
    driver.decode(2)
    gpu_s, wall_s = driver.decode(_COMMANDS)
    with profile(activities=[activity]) as traced:
        driver.decode(2)
    driver.clear()
    steps = _COMMANDS * _STEPS
    return {
        "batch": batch,
        "context": context,
        "step_us": gpu_s / steps * 1e6,
        "wall_us": wall_s / steps * 1e6,
        "prefill_tokens_per_s": batch * context / prefill_s,
        "kernels": top_kernels(traced, 2 * _STEPS),
        "prefill_kernels": top_kernels(prefilled, 1),
    }


def top_kernels(traced: Any, steps: int) -> list[dict[str, Any]]:
    """Microseconds per step and launches per step of each kernel, most first, with all others in one line."""
    spent: dict[str, list[float]] = defaultdict(list)
    for event in traced.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            spent[event.name].append(event.time_range.elapsed_us())
    found = [
        {"kernel": name[:70], "us": sum(times) / steps, "launches": len(times) / steps}
        for name, times in sorted(spent.items(), key=lambda item: -sum(item[1]))
    ]
    rest = found[_TOP:]
    others = {"us": sum(line["us"] for line in rest), "launches": sum(line["launches"] for line in rest)}
    return [*found[:_TOP], {"kernel": "others", **others}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="qwen3-0.6b", help="a shape, or a checkpoint's directory")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--context", type=int, default=700)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    directory = Path(options.model)
    is_shape = not directory.is_dir()
    if is_shape:
        directory = write_shape(options.model, Path(tempfile.mkdtemp()))
    settings = WorkerSettings(
        model=str(directory), load_format="dummy" if is_shape else "auto", device=options.device,
        max_model_len=0 if not is_shape else 16384,
    )  # fmt: skip
    started = time.perf_counter()
    worker = load(settings, 1, lambda _: None)
    report: dict[str, Any] = {"model": options.model, "load_s": time.perf_counter() - started, "cases": []}
    print(f"{options.model}: loaded in {report['load_s']:.1f} s, {worker.description.num_blocks} KV blocks")
    for batch in options.batch:
        case = measure(Driver(worker, options.temperature), batch, options.context)
        worker.runner.clear()
        report["cases"].append(case)
        print(
            f"batch {batch}: {case['step_us']:.0f} us per step on the GPU, {case['wall_us']:.0f} on the clock; "
            f"prefill {case['prefill_tokens_per_s']:.0f} tokens/s"
        )
        for title, name in (("a decode step", "kernels"), ("the whole prefill", "prefill_kernels")):
            print(f" {title}:")
            for line in case[name]:
                print(f"  {line['us']:9.1f} us {line['launches']:7.1f}  {line['kernel']}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"profile-{directory.name if not is_shape else options.model}.json").write_text(
        json.dumps(report, indent=1)
    )


if __name__ == "__main__":
    main()
