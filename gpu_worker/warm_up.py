"""Steps of every kind before the first request, so that none waits for a kernel's compilation."""

from collections.abc import Callable
from dataclasses import dataclass

from gpu_worker.model_runner import ModelRunner
from quire.packing import pack_float32, pack_int32, pack_uint32
from quire.v1 import types_pb2, worker_pb2

_LENGTHS = ((1,), (30, 3), (60,), (120,), (250,), (500,), (1000,), (2500,), (4000,))
"""Prompts of one step: each has other tiles, or another product's kernel."""
_DECODED = 4


def _every_kind(limits: worker_pb2.WorkerDescription) -> tuple[types_pb2.SamplingParams, ...]:
    """What rows may ask of sampling, so that each of its kernels runs."""
    return (
        types_pb2.SamplingParams(temperature=0),
        types_pb2.SamplingParams(temperature=1, seed=1),
        types_pb2.SamplingParams(temperature=1, top_p=0.9, top_k=20, min_p=0.01, seed=1),
        types_pb2.SamplingParams(
            temperature=1, frequency_penalty=0.1, repetition_penalty=1.1, seed=1, min_tokens=2,
            stop_token_ids=pack_int32([0]), logit_bias_token_ids=pack_int32([0]),
            logit_bias_values=pack_float32([1.0]), logprobs=min(1, limits.max_logprobs),
        ),
    )  # fmt: skip


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
    kinds = _every_kind(runner.limits)
    for number, sampling in enumerate(kinds, start=1):
        places = _Places(runner.limits)
        for lengths in _LENGTHS:
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
        on_progress(number / len(kinds))
