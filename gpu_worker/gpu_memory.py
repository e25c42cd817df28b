"""What a GPU's memory goes to: measured by running the largest steps before the KV cache is made."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
    tokens_per_row = max(
        1, min(limits.max_step_tokens // limits.max_rows, limits.model.max_model_len - _DECODED)
    )
    blocks_per_row = -(-(tokens_per_row + _DECODED) // limits.block_size)
    num_decoding = graph_sizes(limits.max_rows)[-1]
    torch.cuda.empty_cache()
    cache = make_cache(limits.max_rows * blocks_per_row)
    reserved = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    runner = ModelRunner(decoder, cache, limits=limits, device=device)
    runner.launch(_largest_step(limits.max_rows, tokens_per_row, blocks_per_row)).wait()
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
    num_rows = min(limits.max_rows, MOST_DECODING)
    per_row = max(1, min(limits.max_step_tokens, MOST_TOKENS + MOST_DECODING) // num_rows)
    runner.launch(_largest_step(num_rows, min(per_row, tokens_per_row), blocks_per_row)).wait()
    graphs = decoding + torch.cuda.max_memory_allocated(device) - before
    del runner, cache
    torch.cuda.empty_cache()
    return MemoryNeeds(activations, graphs)


def kv_budget(needs: MemoryNeeds, utilization: float) -> int:
    """Bytes that are left for the KV cache."""
    free, total = torch.cuda.mem_get_info()
    return int(total * utilization) - (total - free) - needs.activations - needs.graphs


def _largest_step(num_rows: int, tokens_per_row: int, blocks_per_row: int) -> worker_pb2.StepCommand:
    """Every row prefills, and samples with filters and penalties, whose tables are made then."""
    sampling = types_pb2.SamplingParams(
        temperature=1, top_p=0.9, top_k=50, frequency_penalty=0.1, repetition_penalty=1.1, seed=1
    )
    adding = [
        worker_pb2.RowAdd(
            row=row,
            token_ids=pack_int32([0] * tokens_per_row),
            num_prompt_tokens=tokens_per_row,
            block_ids=pack_int32(range(row * blocks_per_row, (row + 1) * blocks_per_row)),
            max_total_tokens=tokens_per_row + _DECODED,
            sampling=sampling,
        )
        for row in range(num_rows)
    ]
    return worker_pb2.StepCommand(
        step_id=1,
        add_rows=adding,
        prefill_rows=pack_uint32(range(num_rows)),
        prefill_num_tokens=pack_uint32([tokens_per_row] * num_rows),
        decode_steps=1,
    )
