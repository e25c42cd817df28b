"""The batch of one command, laid out on the host: who decodes, who prefills what, and who samples."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpu_worker.row_table import RowTable
from kernels.paged_attention import query_tiles


@dataclass(frozen=True, slots=True)
class StepBatch:
    """In the first step come the decoding rows, a token each, then the chunks; in later ones `rows` decode."""

    rows: NDArray[np.int64]
    """Those that sample: the decoding ones, then those whose prompt ends."""
    num_decoding: int
    """How many of `rows` decode from the first step on."""
    num_prefilled: int
    """Prompt tokens in the first step; 0 means that it is a decode step like the others."""
    prefill: dict[str, NDArray[np.generic]]
    """For the copy to the device, if there are chunks: prefill_tokens, prefill_positions, prefill_slots int64
    [tokens]; attention_rows int64 [rows and chunks]; chunk_ends int32 [chunks], and those of `Chunks`;
    sample_at int64 [rows], the token after which each row samples."""


def lay_out(
    table: RowTable, prefill_rows: list[int], prefill_counts: list[int], decode_steps: int
) -> StepBatch:
    """Take the chunks from their rows. What was asked for has been checked; rows that failed are left out."""
    decoding = table.decoding_rows() if decode_steps else np.empty(0, np.int64)
    chunk_rows, counts, ends, ending, sample_at = [], [], [], [], list(range(len(decoding)))
    tokens, positions, slots = [], [], []
    num_tokens = len(decoding)
    for row, count in zip(prefill_rows, prefill_counts, strict=True):
        chunk, start, is_last = table.take_chunk(row, count)
        if table.failed[row]:
            continue
        places = np.arange(start, start + count)
        tokens.append(chunk.astype(np.int64))
        positions.append(places)
        slots.append(table.slots(row, places))
        chunk_rows.append(row)
        counts.append(count)
        ends.append(start + count)
        num_tokens += count
        if is_last:
            ending.append(row)
            sample_at.append(num_tokens - 1)
    prefill: dict[str, NDArray[np.generic]] = {}
    if chunk_rows:
        tile_chunks, tile_starts = query_tiles(counts)
        prefill = {
            "prefill_tokens": np.concatenate(tokens),
            "prefill_positions": np.concatenate(positions),
            "prefill_slots": np.concatenate(slots),
            "attention_rows": np.concatenate((decoding, np.array(chunk_rows, np.int64))),
            "query_lens": np.array(counts, np.int32),
            "query_starts": np.cumsum([len(decoding), *counts[:-1]], dtype=np.int32),
            "tile_chunks": tile_chunks,
            "tile_starts": tile_starts,
            "chunk_ends": np.array(ends, np.int32),
            "sample_at": np.array(sample_at, np.int64),
        }
    rows = np.concatenate((decoding, np.array(ending, np.int64))) if ending else decoding
    return StepBatch(rows, len(decoding), sum(counts), prefill)
