"""What a GPU's memory goes to: measured by running the largest steps before the KV cache is made."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from gpu_worker.decode_graphs import graph_sizes
from gpu_worker.kv_cache import KvCache
from gpu_worker.mixed_graphs import MOST_DECODING, MOST_TOKENS
from gpu_worker.model_runner import ModelRunner
from gpu_worker.models.decoder import Decoder
from quire.errors import InvalidRequest
from quire.packing import pack_int32, pack_uint32
from quire.v1 import types_pb2, worker_pb2

_GIB = 2**30
_DECODED = 3
"""Tokens that a row of the measured steps gains, and one more."""


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """Bytes beside weights and KV cache."""

    activations: int
    """Of the largest step, with the rows' own columns."""
    graphs: int
    """Of the recorded steps, whose memory is apart from the other steps'."""


@contextmanager
def explained(doing: str, remedy: str) -> Iterator[None]:
    """Turn the device's out-of-memory error into one line that says what would help."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        free, total = torch.cuda.mem_get_info()
        raise InvalidRequest(
            f"out of GPU memory {doing} ({free / _GIB:.1f} of {total / _GIB:.1f} GiB are free): {remedy}"
        ) from error


def measure(
    decoder: Decoder,
    limits: worker_pb2.WorkerDescription,
    make_cache: Callable[[int], KvCache],
    device: torch.device,
) -> MemoryNeeds:
    """Run the largest step, then the largest of those that are recorded, over a cache of few blocks."""
    num_decoding = graph_sizes(limits.max_rows)[-1]
    recorded_rows = min(limits.max_rows, MOST_DECODING)
    whole = _Rows.of(limits, limits.max_rows, limits.max_step_tokens)
    recorded = _Rows.of(limits, recorded_rows, min(limits.max_step_tokens, MOST_TOKENS + MOST_DECODING))
    torch.cuda.empty_cache()
    cache = make_cache(max(rows.number * rows.blocks for rows in (whole, recorded)))
    reserved = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    runner = ModelRunner(decoder, cache, limits=limits, device=device)
    runner.launch(_largest_step(whole)).wait()
    activations = torch.cuda.max_memory_reserved(device) - reserved
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    leaving = list(range(num_decoding, limits.max_rows))
    command = worker_pb2.StepCommand(step_id=2, remove_rows=pack_uint32(leaving), decode_steps=1)
    runner.launch(command).wait()
    decoding = torch.cuda.max_memory_allocated(device) - before
    # Steps with prompts that are recorded, and the logits that they leave.
    torch.cuda.reset_peak_memory_stats(device)
    runner.clear()
    runner.launch(_largest_step(recorded)).wait()
    # A recording has room for more positions than a step may have.
    positions = min(limits.max_step_tokens, MOST_TOKENS) + recorded_rows
    mixed = (
        (torch.cuda.max_memory_allocated(device) - before) * positions // (recorded.number * recorded.tokens)
    )
    graphs = decoding + mixed
    del runner, cache
    torch.cuda.empty_cache()
    return MemoryNeeds(activations, graphs)


def kv_budget(needs: MemoryNeeds, utilization: float) -> int:
    """Bytes that are left for the KV cache."""
    free, total = torch.cuda.mem_get_info()
    return int(total * utilization) - (total - free) - needs.activations - needs.graphs


class _Rows(NamedTuple):
    """Rows of a step that is measured, all alike."""

    number: int
    tokens: int
    """Of each one's prompt."""
    blocks: int
    """For them and what it decodes."""

    @classmethod
    def of(cls, limits: worker_pb2.WorkerDescription, number: int, num_tokens: int) -> "_Rows":
        """So many rows, with prompts of `num_tokens` together as far as the model takes them."""
        tokens = max(1, min(num_tokens // number, limits.model.max_model_len - _DECODED))
        return cls(number, tokens, -(-(tokens + _DECODED) // limits.block_size))


def _largest_step(rows: _Rows) -> worker_pb2.StepCommand:
    """Every row prefills, and samples with filters and penalties, whose tables are made then."""
    sampling = types_pb2.SamplingParams(
        temperature=1, top_p=0.9, top_k=50, frequency_penalty=0.1, repetition_penalty=1.1, seed=1
    )
    adding = [
        worker_pb2.RowAdd(
            row=row,
            token_ids=pack_int32([0] * rows.tokens),
            num_prompt_tokens=rows.tokens,
            block_ids=pack_int32(range(row * rows.blocks, (row + 1) * rows.blocks)),
            max_total_tokens=rows.tokens + _DECODED,
            sampling=sampling,
        )
        for row in range(rows.number)
    ]
    return worker_pb2.StepCommand(
        step_id=1,
        add_rows=adding,
        prefill_rows=pack_uint32(range(rows.number)),
        prefill_num_tokens=pack_uint32([rows.tokens] * rows.number),
        decode_steps=1,
    )
