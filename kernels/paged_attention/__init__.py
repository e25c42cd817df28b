"""Causal attention of query tokens over keys and values in pages (Kwon et al., "PagedAttention", SOSP 2023).

A batch is rows that decode, one query each, then chunks of prompts. What all layers of a step have in common is worked
out once, by `plan_attention`, on the device; its shapes depend on the number of rows alone, so that a CUDA graph can
hold it. Floor of decode: one read of each row's K and V. Floor of prefill: 4 * heads * d FLOP per (query, visible key)
pair. Measured on an H200 (docs/performance.md, 28): 90 % of a copy's rate and more from 340 MB of KV on, 64 rows of
1,024 tokens 80 to 87 %; one row 7 to 8 us, nearly all latency; two prompts of 4,096 tokens 76 to 78 % of the rate of
products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kernels.dispatch import implementation
from kernels.kv_scales import KvScales

QUERY_TILE = 128
"""Queries of a chunk that are worked on at once."""
_TILE_ROWS = 64
Order = Literal["as they come", "longest first", "in shares"]


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of a batch, on the device; tiles cover each chunk's queries QUERY_TILE at a time."""

    query_lens: torch.Tensor
    """int32 [chunks]."""
    query_starts: torch.Tensor
    """int32 [chunks]: index of each chunk's first query in the batch."""
    tile_chunks: torch.Tensor
    """int32 [tiles]: chunk of each tile."""
    tile_starts: torch.Tensor
    """int32 [tiles]: its first query, counted from the chunk's."""


@dataclass(frozen=True, slots=True)
class SharedPrefixes:
    """Decoding rows whose block tables begin alike, in groups; on the device.

    A group reads what its rows share once for all of them (Juravsky et al., "Hydragen", 2024; Ye et al., "Cascade
    Inference", 2024).
    """

    lens: torch.Tensor
    """int32 [rows]: tokens at each row's beginning that its group attends to, a multiple of the block size; 0 for a
    row without a group. A row whose context is not longer attends to them itself."""
    members: torch.Tensor
    """int32 [groups, `group_members`]: rows of each group, which have the same blocks and the same of `lens`; -1 for
    none."""


@dataclass(frozen=True, slots=True)
class SharedWork:
    """What groups leave for their rows, in `splits` parts at most."""

    prefixes: SharedPrefixes
    partial_out: torch.Tensor
    """float32 [rows, splits, heads, d]."""
    partial_max: torch.Tensor
    """float32 [rows, splits, heads]: the largest score, in powers of two."""
    partial_sum: torch.Tensor
    """float32 [rows, splits, heads]."""


class ProgramSizes(NamedTuple):
    """How an item is attended, and for how many programs at once a plan cuts the work."""

    tile: int
    """KV tokens at a time; items begin at multiples of it, counted from the first token that is the row's own."""
    num_warps: int
    num_stages: int
    programs_per_sm: int
    order: Order = "as they come"
    """How programs go about rows: in the batch's order, those with most tokens first, or each with an equal share."""


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """The decoding rows' KV in items, listed on the device; what splits need to be merged."""

    sizes: ProgramSizes
    items: torch.Tensor
    """int32 [5, most items]: of each item its row, its first token and the one after its last, the row's first item,
    and how many the row has; no tokens where there is no item."""
    spans: torch.Tensor | None
    """int32 [2, programs]: each program's first item and the one after its last; None where every item is a program's.
    """
    arrived: torch.Tensor
    """int32 [rows, kv_heads]: items of a row that are done; 0 between launches."""
    partial_out: torch.Tensor
    """float32 [most items, heads, d]."""
    partial_max: torch.Tensor
    """float32 [most items, heads]: the largest score, in powers of two."""
    partial_sum: torch.Tensor
    """float32 [most items, heads]."""
    shared: SharedWork | None = None
    """Of the contexts' beginnings, which then are in no item; None where every row attends to all of its own."""


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """A batch as attention sees it."""

    block_tables: torch.Tensor
    """int32 [rows, max_blocks]; entries past a context are not looked at."""
    context_lens: torch.Tensor
    """int32 [rows]: tokens of each row whose KV exists after this batch; 0 for a row that is no work."""
    num_decoding: int
    """Rows with one query each; the others are `chunks`."""
    chunks: Chunks | None
    decode: DecodeWork | None
    """None where nothing decodes, and for the reference."""


def query_tiles(query_lens: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """`Chunks.tile_chunks` and `tile_starts` for chunks of these lengths: the tiles that see most come first."""
    tiles = [
        (start, chunk) for chunk, length in enumerate(query_lens) for start in range(0, length, QUERY_TILE)
    ]
    tiles.sort(reverse=True)
    starts, chunks = np.array(tiles, np.int32).reshape(-1, 2).T
    return chunks, starts


def group_members(num_heads: int, num_kv_heads: int) -> int:
    """Rows that a group of `SharedPrefixes` has room for: their heads fill a tile of the tensor cores."""
    heads_per_row = 1 << (num_heads // num_kv_heads - 1).bit_length()
    return max(1, _TILE_ROWS // heads_per_row)


def plan_attention(
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    num_decoding: int,
    chunks: Chunks | None,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    prefixes: SharedPrefixes | None = None,
) -> AttentionPlan:
    """What every layer's `paged_attention` needs of a batch; arguments as in `AttentionPlan`.

    `prefixes` are of the decoding rows, and for layers without a window.
    """
    plan: AttentionPlan = implementation("paged_attention", block_tables).plan_attention(
        block_tables, context_lens, num_decoding, chunks, num_heads, num_kv_heads, head_dim, prefixes
    )
    return plan


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    window: int | None = None,
    scales: KvScales | None = None,
) -> torch.Tensor:
    """Attention of each row's last queries over its tokens up to themselves.

    q [queries, heads, d], row after row as in the plan; caches [num_blocks, kv_heads, block_size, d], which already
    hold the queries' own keys and values, in q's dtype or, with `scales`, in `kernels.kv_scales.FP8`. heads is a
    multiple of kv_heads. `window`: a token sees itself and the window - 1 before it. Returns the shape and dtype of q;
    what it holds for a row of no context is arbitrary.
    """
    result: torch.Tensor = implementation("paged_attention", q).paged_attention(
        q, k_cache, v_cache, plan, scale, window, scales
    )
    return result
