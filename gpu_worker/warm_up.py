"""Steps of every kind before the first request, so that none waits for a kernel's compilation."""

import os
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gpu_worker.decode_graphs import graph_sizes
from gpu_worker.mixed_graphs import MOST_CHUNKS, TOKENS
from gpu_worker.model_runner import ModelRunner
from quire.packing import pack_int32, pack_uint32
from quire.v1 import types_pb2, worker_pb2

_LENGTHS = ((1,), (30, 3), (60,), (120,), (250,), (500,), (1000,), (2500,), (4000,))
"""Prompts of one step: each has other tiles, or another product's kernel."""
_SAMPLING = (
    types_pb2.SamplingParams(temperature=0),
    types_pb2.SamplingParams(temperature=1, seed=1),
    types_pb2.SamplingParams(temperature=1, top_p=0.9, top_k=20, min_p=0.01, seed=1),
    types_pb2.SamplingParams(temperature=1, frequency_penalty=0.1, repetition_penalty=1.1, seed=1),
)
_DECODED = 4
_MOST_THREADS = 12


@dataclass
class _Places:
    """Where the next row and its blocks are."""

    limits: worker_pb2.WorkerDescription
    rows: int = 0
    blocks: int = 0

    def add(self, length: int, sampling: types_pb2.SamplingParams) -> worker_pb2.RowAdd | None:
        """A row with a prompt of so many tokens; None where it has no room."""
        total = length + _DECODED
        needed = -(-total // self.limits.block_size)
        is_too_long = total > self.limits.model.max_model_len or length > self.limits.max_step_tokens // 2
        if is_too_long or self.rows >= self.limits.max_rows or self.blocks + needed > self.limits.num_blocks:
            return None
        added = worker_pb2.RowAdd(
            row=self.rows,
            token_ids=pack_int32([0] * length),
            num_prompt_tokens=length,
            block_ids=pack_int32(range(self.blocks, self.blocks + needed)),
            max_total_tokens=total,
            sampling=sampling,
        )
        self.rows, self.blocks = self.rows + 1, self.blocks + needed
        return added


def warm_up(runner: ModelRunner, on_progress: Callable[[float], None]) -> None:
    """Prefill and decode with every kind of sampling; leaves no row behind. `on_progress` gets the share done."""
    for number, sampling in enumerate(_SAMPLING, start=1):
        _run(runner, _LENGTHS, sampling)
        on_progress(number / len(_SAMPLING))


def compile_ahead(make_runner: Callable[[], ModelRunner], on_progress: Callable[[float], None]) -> None:
    """Run steps of every size and kind in several threads, so that their kernels are compiled side by side.

    Later each step finds its kernels ready, where recording them would wait for one compiler after the other. Steps of
    one layer will do. `on_progress` gets the share done.
    """
    first = make_runner()
    idle: queue.SimpleQueue[ModelRunner] = queue.SimpleQueue()
    idle.put(first)
    num_threads = min(_MOST_THREADS, os.cpu_count() or 1)
    for _ in range(1, num_threads):
        idle.put(make_runner())
    steps = [_LENGTHS, *([(tokens // MOST_CHUNKS,) * MOST_CHUNKS] for tokens in TOKENS)]
    steps += [[(1,) * size] for size in graph_sizes(first.limits.max_rows)]
    # All sizes first: what kinds of sampling differ in is little.
    jobs = [(lengths, sampling) for sampling in _SAMPLING for lengths in steps]

    def run(job: tuple[Sequence[Sequence[int]], types_pb2.SamplingParams]) -> None:
        runner = idle.get()
        _run(runner, *job)
        idle.put(runner)

    with ThreadPoolExecutor(num_threads) as pool:
        for number, _ in enumerate(pool.map(run, jobs), start=1):
            on_progress(number / len(jobs))


def _run(runner: ModelRunner, steps: Sequence[Sequence[int]], sampling: types_pb2.SamplingParams) -> None:
    """Steps that each add prompts of these lengths, beside which those before decode; then one that only decodes."""
    places = _Places(runner.limits)
    for lengths in steps:
        added = [row for length in lengths if (row := places.add(length, sampling)) is not None]
        command = worker_pb2.StepCommand(
            add_rows=added,
            prefill_rows=pack_uint32([row.row for row in added]),
            prefill_num_tokens=pack_uint32([row.num_prompt_tokens for row in added]),
            decode_steps=1,
        )
        runner.launch(command).wait()
    runner.launch(worker_pb2.StepCommand(decode_steps=1)).wait()
    runner.clear()
