"""Drives a ModelRunner as a scheduler would, with blocks scattered on purpose."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpu_worker.loading import load
from gpu_worker.model_runner import ModelRunner
from gpu_worker.settings import WorkerSettings
from quire.packing import pack_int32, pack_uint32, unpack_float32, unpack_int32, unpack_uint8, unpack_uint32
from quire.v1 import types_pb2, worker_pb2


def make_runner(directory: Path, **settings: Any) -> ModelRunner:
    """A runner of the checkpoint, on the CPU in float32, with one thread."""
    chosen = WorkerSettings.model_construct(
        **{
            name: field.get_default()
            for name, field in WorkerSettings.model_fields.items()
            if not field.is_required()
        },
    )
    values = chosen.model_dump() | {"model": str(directory), "threads": 1, "device": "cpu"} | settings
    return load(WorkerSettings.model_construct(**values), 1, lambda _: None).runner


def execute(runner: ModelRunner, command: worker_pb2.StepCommand) -> worker_pb2.StepResult:
    """Launch a command and wait for its result."""
    return runner.launch(command).wait()


@dataclass
class DrivenRow:
    """What came of one row."""

    prompt: list[int]
    max_tokens: int
    sampling: types_pb2.SamplingParams
    row: int = -1
    num_prefilled: int = 0
    block_ids: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: int = 0
    error: types_pb2.Error | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return bool(self.finish_reason) or self.error is not None


class WorkerDriver:
    """Adds rows a few at a time, prefills in chunks beside rows that decode, and collects what is sampled."""

    def __init__(self, runner: ModelRunner, *, seed: int = 0) -> None:
        self.runner = runner
        self._rng = random.Random(seed)
        cache = runner._cache
        self._free_blocks = list(range(cache.num_blocks))
        self._rng.shuffle(self._free_blocks)
        self._block_size = cache.block_size
        self._free_rows = list(range(runner.rows.max_rows))
        self._rng.shuffle(self._free_rows)
        self._step_id = 0
        self._epoch = 0
        self._seated: dict[int, DrivenRow] = {}

    def run(
        self,
        rows: Sequence[DrivenRow],
        *,
        at_once: int = 32,
        max_chunk: int = 10_000,
        max_decode_steps: int = 1,
    ) -> None:
        """Bring every row to its end, `at_once` of them side by side."""
        waiting = list(rows)
        removable: list[DrivenRow] = []
        while waiting or self._seated:
            command = self._command()
            self._remove(command, removable)
            while waiting and len(self._seated) < at_once:
                self._add(command, waiting.pop(0))
            command.decode_steps = self._rng.randint(1, max_decode_steps)
            self._plan(command, max_chunk)
            removable = self._take(execute(self.runner, command))
        if removable:
            command = self._command()
            self._remove(command, removable)
            execute(self.runner, command)

    def _command(self) -> worker_pb2.StepCommand:
        self._step_id += 1
        return worker_pb2.StepCommand(step_id=self._step_id)

    def _remove(self, command: worker_pb2.StepCommand, rows: list[DrivenRow]) -> None:
        command.remove_rows = pack_uint32([driven.row for driven in rows])
        for driven in rows:
            self._free_rows.append(driven.row)
            self._free_blocks += driven.block_ids

    def _add(self, command: worker_pb2.StepCommand, driven: DrivenRow) -> None:
        driven.row = self._free_rows.pop()
        self._epoch += 1
        self._seated[driven.row] = driven
        sampling = types_pb2.SamplingParams()
        sampling.CopyFrom(driven.sampling)
        command.add_rows.add(
            row=driven.row,
            epoch=self._epoch,
            token_ids=pack_int32(driven.prompt + driven.tokens),
            num_prompt_tokens=len(driven.prompt),
            max_total_tokens=len(driven.prompt) + driven.max_tokens,
            sampling=sampling,
        )

    def _plan(self, command: worker_pb2.StepCommand, max_chunk: int) -> None:
        rows, counts, appended, num_blocks, block_ids = [], [], [], [], []
        for driven in self._seated.values():
            known = len(driven.prompt) + len(driven.tokens)
            left = known - driven.num_prefilled
            positions = known + command.decode_steps - 1
            if driven.num_prefilled < known and left > 0 and not self._is_decoding(driven):
                count = min(left, self._rng.randint(1, max_chunk))
                rows.append(driven.row)
                counts.append(count)
                positions = driven.num_prefilled + count + (command.decode_steps if count == left else 0)
                driven.num_prefilled += count
            needed = -(-min(positions, len(driven.prompt) + driven.max_tokens) // self._block_size)
            new = [self._free_blocks.pop() for _ in range(needed - len(driven.block_ids))]
            if new:
                driven.block_ids += new
                appended.append(driven.row)
                num_blocks.append(len(new))
                block_ids += new
        command.prefill_rows, command.prefill_num_tokens = pack_uint32(rows), pack_uint32(counts)
        command.append_rows, command.append_num_blocks = pack_uint32(appended), pack_uint32(num_blocks)
        command.append_block_ids = pack_int32(block_ids)

    def _is_decoding(self, driven: DrivenRow) -> bool:
        return bool(self.runner.rows.decoding[driven.row])

    def _take(self, result: worker_pb2.StepResult) -> list[DrivenRow]:
        rows = unpack_uint32(result.rows).tolist()
        counts = unpack_uint32(result.num_tokens).tolist() if result.num_tokens else [1] * len(rows)
        tokens, start = unpack_int32(result.token_ids).tolist(), 0
        for row, count, reason in zip(
            rows, counts, unpack_uint8(result.finish_reasons).tolist(), strict=True
        ):
            driven = self._seated[row]
            driven.tokens += tokens[start : start + count]
            driven.finish_reason = reason
            start += count
        for item in result.logprobs:
            values = unpack_float32(item.logprobs.token_logprobs)
            self._seated[item.row].logprobs += np.asarray(values, float).tolist()
        for failure in result.errors:
            self._seated[failure.row].error = failure.error
        over = [driven for driven in self._seated.values() if driven.is_over]
        for driven in over:
            del self._seated[driven.row]
        return over


def greedy(**fields: Any) -> types_pb2.SamplingParams:
    """Greedy sampling, with further fields."""
    return types_pb2.SamplingParams(temperature=0, seed=0, **fields)
