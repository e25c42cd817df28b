"""Drives a worker's model runner without services: which tokens are computed in which command is up to the caller."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from gpu_worker.loading import LoadedWorker
from quire.packing import pack_int32, pack_uint32, unpack_float32, unpack_int32, unpack_uint32
from quire.v1 import types_pb2, worker_pb2

NUM_TOP = 20


@dataclass
class PlannedRow:
    """A prompt, how it is cut, and what came of it."""

    prompt: list[int]
    chunks: list[int]
    """Tokens of each chunk, one per command; together all that are not cached."""
    num_new: int
    cached_blocks: list[int] = field(default_factory=list)
    """Blocks that hold the first tokens already."""
    blocks: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Of each of `tokens`."""
    top_ids: list[list[int]] = field(default_factory=list)
    top_logprobs: list[list[float]] = field(default_factory=list)


class RowDriver:
    """Uses each block once, so that every row's KV stays until the end."""

    def __init__(self, worker: LoadedWorker) -> None:
        self._runner = worker.runner
        self._block_size = worker.description.block_size
        self._next_block = 0
        self._step_id = 0

    def run(self, rows: Sequence[PlannedRow]) -> None:
        """Bring all rows to their end, side by side; rows past their prompt decode while others prefill."""
        command = self._command()
        for number, row in enumerate(rows):
            command.add_rows.append(self._added(number, row))
        taken = 0
        while any(len(row.tokens) < row.num_new for row in rows):
            chunks = [(at, row.chunks[taken]) for at, row in enumerate(rows) if taken < len(row.chunks)]
            command.prefill_rows = pack_uint32([at for at, _ in chunks])
            command.prefill_num_tokens = pack_uint32([count for _, count in chunks])
            command.decode_steps = 1
            self._take(self._runner.launch(command).wait(), rows)
            command = self._command()
            taken += 1
        command.remove_rows = pack_uint32(range(len(rows)))
        self._runner.launch(command).wait()

    def _command(self) -> worker_pb2.StepCommand:
        self._step_id += 1
        return worker_pb2.StepCommand(step_id=self._step_id)

    def _added(self, number: int, row: PlannedRow) -> worker_pb2.RowAdd:
        total = len(row.prompt) + row.num_new
        needed = -(-total // self._block_size) - len(row.cached_blocks)
        row.blocks = [*row.cached_blocks, *range(self._next_block, self._next_block + needed)]
        self._next_block += needed
        return worker_pb2.RowAdd(
            row=number,
            epoch=self._step_id,
            token_ids=pack_int32(row.prompt),
            num_prompt_tokens=len(row.prompt),
            num_computed_tokens=len(row.cached_blocks) * self._block_size,
            block_ids=pack_int32(row.blocks),
            max_total_tokens=total,
            sampling=types_pb2.SamplingParams(temperature=0, seed=0, logprobs=NUM_TOP),
        )

    @staticmethod
    def _take(result: worker_pb2.StepResult, rows: Sequence[PlannedRow]) -> None:
        if result.errors:
            raise RuntimeError(str(result.errors[0]))
        numbers, tokens = unpack_uint32(result.rows).tolist(), unpack_int32(result.token_ids).tolist()
        for number, token in zip(numbers, tokens, strict=True):
            rows[number].tokens.append(token)
        for item in result.logprobs:
            row = rows[item.row]
            row.logprobs += unpack_float32(item.logprobs.token_logprobs).tolist()
            row.top_ids += unpack_int32(item.logprobs.top_token_ids).reshape(-1, NUM_TOP).tolist()
            row.top_logprobs += np.reshape(unpack_float32(item.logprobs.top_logprobs), (-1, NUM_TOP)).tolist()
