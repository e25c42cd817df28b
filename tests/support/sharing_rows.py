"""Rows whose block tables begin alike, driven through a runner without CUDA graphs."""

import itertools

import torch

from gpu_worker.decode_graphs import DecodeGraphs, graph_sizes
from gpu_worker.model_runner import ModelRunner
from gpu_worker.row_sampling import DrawKind
from quire.packing import pack_int32, pack_uint32, unpack_int32, unpack_uint32
from quire.v1 import types_pb2, worker_pb2
from tests.support.worker_driver import execute


class Unrecorded(DecodeGraphs):
    """Runs what a graph would hold; notes whether in groups."""

    in_groups: list[bool]

    def allow(self, max_rows: int) -> None:
        self._sizes = self._sizes_in_groups = graph_sizes(max_rows)
        self.in_groups = []

    def replay(self, size: int, kind: DrawKind, *, in_groups: bool) -> None:
        self.in_groups.append(in_groups)
        self._steps.decode(size, kind, in_groups=in_groups)

    def replay_logits(self, size: int, *, in_groups: bool) -> torch.Tensor:
        self.in_groups.append(in_groups)
        return self._steps.decode_logits(size, in_groups=in_groups)


def prefill_sharing(
    runner: ModelRunner,
    tokens: list[list[int]],
    prompts: list[list[int]],
    blocks: dict[int, list[int]],
    *,
    num_computed: int,
    num_tokens: int,
) -> None:
    """Add rows with these block tables, and compute what is left of their prompts."""
    adds = [
        worker_pb2.RowAdd(
            row=row, token_ids=pack_int32(prompts[row]), num_prompt_tokens=len(prompts[row]),
            num_computed_tokens=num_computed, block_ids=pack_int32(block_ids),
            max_total_tokens=len(prompts[row]) + num_tokens,
            sampling=types_pb2.SamplingParams(temperature=0, ignore_eos=True),
        )
        for row, block_ids in blocks.items()
    ]  # fmt: skip
    counts = [len(prompts[row]) - num_computed for row in blocks]
    command = worker_pb2.StepCommand(
        add_rows=adds, prefill_rows=pack_uint32(list(blocks)), prefill_num_tokens=pack_uint32(counts)
    )
    collect(runner, tokens, command)


def collect(runner: ModelRunner, tokens: list[list[int]], command: worker_pb2.StepCommand) -> None:
    """Execute a command; tokens go to their rows."""
    result = execute(runner, command)
    assert not result.errors
    rows = unpack_uint32(result.rows).tolist()
    counts = unpack_uint32(result.num_tokens).tolist() if result.num_tokens else [1] * len(rows)
    came = iter(unpack_int32(result.token_ids).tolist())
    for row, count in zip(rows, counts, strict=True):
        tokens[row].extend(itertools.islice(came, count))
