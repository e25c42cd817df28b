"""A worker in simulated time: its results are the instant worker's, its times those of a GPU."""

import numpy as np
from numpy.typing import NDArray

from benchmarks.instant_rows import InstantRows
from benchmarks.simulator.step_time import Gpu, ModelShape, StepWork, step_time_s
from quire.packing import unpack_uint32
from quire.v1 import types_pb2, worker_pb2

LINK_S = 0.0002
"""Seconds a message takes from the scheduler to a worker, or back."""

_KV_SHARE = 0.9  # of the memory that the weights leave
_BLOCK_SIZE = 16


def describe(
    name: str, epoch: int, shape: ModelShape, gpu: Gpu, *, max_rows: int = 256, num_blocks: int | None = None
) -> worker_pb2.WorkerDescription:
    """A worker that serves `shape` on `gpu`; `num_blocks` None: what fits into the GPU's memory.

    No token ends a sequence: outputs are as long as the trace says.
    """
    if num_blocks is None:
        left = gpu.memory_bytes - shape.step_weight_bytes
        num_blocks = int(_KV_SHARE * left) // (shape.kv_bytes_per_position * _BLOCK_SIZE)
    model = types_pb2.ModelDescription(
        name=shape.name, revision="simulated", vocab_size=shape.vocab_size, max_model_len=16384
    )
    return worker_pb2.WorkerDescription(
        worker_id=name,
        worker_epoch=epoch,
        model=model,
        block_size=_BLOCK_SIZE,
        num_blocks=num_blocks,
        max_rows=max_rows,
        max_step_tokens=8192,
        max_decode_steps=8,
        device=gpu.name,
    )


class SimulatedWorker:
    """Takes commands in order and says when each will have been answered.

    Commands queue here as they do at a worker: one starts when it has arrived and the one before has finished.
    """

    def __init__(self, description: worker_pb2.WorkerDescription, shape: ModelShape, gpu: Gpu) -> None:
        self.rows = InstantRows(description)
        self.busy_s = 0.0
        """Seconds spent in steps."""
        self._shape, self._gpu = shape, gpu
        self._free_at = 0.0
        self._num_computed = np.zeros(description.max_rows, np.int64)
        self._num_added = np.zeros(description.max_rows, np.int64)

    @property
    def description(self) -> worker_pb2.WorkerDescription:
        """What the worker is."""
        return self.rows.description

    def send(self, command: worker_pb2.StepCommand, now: float) -> tuple[float, worker_pb2.StepResult]:
        """Execute a command sent at `now`; returns when its result reaches the scheduler, and the result.

        Raises ProtocolViolation for a command that the step protocol does not allow.
        """
        result = self.rows.execute(command)
        result.step_s = sum(
            step_time_s(work, self._shape, self._gpu) for work in self._step_works(command, result)
        )
        self.busy_s += result.step_s
        self._free_at = max(self._free_at, now + LINK_S) + result.step_s
        return self._free_at + LINK_S, result

    def _step_works(self, command: worker_pb2.StepCommand, result: worker_pb2.StepResult) -> list[StepWork]:
        """The work of each step of a command, read off the command and its result.

        The first step is mixed, chunks and decoding rows; the others decode.
        """
        for added in command.add_rows:
            self._num_computed[added.row] = added.num_computed_tokens
            self._num_added[added.row] = len(added.token_ids) // 4
        num_steps = max(command.decode_steps, 1 if command.prefill_rows else 0)
        prompts = unpack_uint32(command.prefill_rows).astype(np.intp)
        chunks = unpack_uint32(command.prefill_num_tokens).astype(np.int64)
        starts = self._num_computed[prompts]
        self._num_computed[prompts] = ends = starts + chunks
        rows = unpack_uint32(result.rows).astype(np.intp)
        counts = unpack_uint32(result.num_tokens) if result.num_tokens else np.ones(len(rows), np.uint32)
        # A row whose prompt ended here sampled its first token from the chunk, without decoding.
        from_chunk = np.isin(rows, prompts[ends == self._num_added[prompts]])
        lengths = self._num_computed[rows] + ~from_chunk  # KV positions that decoding in the first step reads
        self._num_computed[rows] += counts - from_chunk
        works = [_decode_work(lengths, counts, from_chunk, step) for step in range(num_steps)]
        if len(prompts):
            pairs = int((chunks * starts + chunks * (chunks + 1) // 2).sum())
            first = works[0]
            works[0] = StepWork(
                num_positions=first.num_positions + int(chunks.sum()),
                num_samples=first.num_samples,
                kv_positions=first.kv_positions + int(ends.sum()),
                attention_pairs=first.attention_pairs + pairs,
            )
        return works


def _decode_work(
    lengths: NDArray[np.int64], counts: NDArray[np.uint32], from_chunk: NDArray[np.bool_], step: int
) -> StepWork:
    """Work of the rows that decode in one step; columns are the result's rows, [n]."""
    sampling = counts > step
    decoding = sampling & ~from_chunk if step == 0 else sampling
    num_decoding = int(decoding.sum())
    read = int(lengths[decoding].sum()) + step * num_decoding
    return StepWork(
        num_positions=num_decoding,
        num_samples=int(sampling.sum()),
        kv_positions=read,
        attention_pairs=read,
    )
