"""Batches for paged attention: random pages whose unused places are not numbers, and what should come out."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from kernels.paged_attention import AttentionPlan, Chunks, query_tiles


@dataclass(frozen=True)
class Shape:
    """Of the model and its cache."""

    heads: int
    kv_heads: int
    head_dim: int
    block_size: int


@dataclass
class AttentionBatch:
    """Arguments of `paged_attention` but for the plan; `wanted` float64 is its result where rows have a context."""

    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_tables: torch.Tensor
    context_lens: torch.Tensor
    num_decoding: int
    chunks: Chunks | None
    wanted: torch.Tensor
    scale: float


def chunks_of(query_lens: list[int], *, first: int, device: str = "cpu") -> Chunks:
    """Chunks whose queries begin at place `first` of the batch."""
    lens = torch.tensor(query_lens, dtype=torch.int32, device=device)
    starts = first + torch.cumsum(lens, 0) - lens
    tile_chunks, tile_starts = (torch.from_numpy(a.copy()).to(device) for a in query_tiles(query_lens))
    return Chunks(lens, starts.to(torch.int32), tile_chunks, tile_starts)


def attention_batch(
    shape: Shape,
    decoding: list[int],
    chunks: list[tuple[int, int]],
    *,
    window: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> AttentionBatch:
    """Rows that decode, by context length (0: no row at all), then chunks of (tokens in the chunk, tokens in all)."""
    rows = [(1, length) for length in decoding] + chunks
    per_row = max(1, *(-(-length // shape.block_size) for _, length in rows))
    num_blocks = per_row * len(rows) + 3
    place = (num_blocks, shape.kv_heads, shape.block_size, shape.head_dim)
    # What no row may see is not a number, and would show.
    k_cache = torch.full(place, float("nan"), dtype=dtype, device=device)
    v_cache = k_cache.clone()
    tables = torch.randperm(num_blocks, device=device)[: per_row * len(rows)].view(len(rows), per_row)
    queries, wanted = [], []
    for row, (query_len, length) in enumerate(rows):
        keys, values = torch.randn(2, length, shape.kv_heads, shape.head_dim, device=device).to(dtype)
        q = torch.randn(query_len, shape.heads, shape.head_dim, device=device).to(dtype)
        positions = torch.arange(length, device=device)
        blocks, offsets = tables[row][positions // shape.block_size], positions % shape.block_size
        k_cache[blocks, :, offsets], v_cache[blocks, :, offsets] = keys, values
        queries.append(q)
        wanted.append(naive(q, keys, values, window) if length else torch.full_like(q, float("nan")).double())
    return AttentionBatch(
        torch.cat(queries),
        k_cache,
        v_cache,
        tables.to(torch.int32),
        torch.tensor([length for _, length in rows], dtype=torch.int32, device=device),
        len(decoding),
        chunks_of([n for n, _ in chunks], first=len(decoding), device=device) if chunks else None,
        torch.cat(wanted),
        shape.head_dim**-0.5,
    )


def planned(implementation: ModuleType, *arguments: Any, **more: Any) -> AttentionPlan:
    """`plan_attention` of a module, written before this returns: attention reads it early (`kernels.pdl`)."""
    plan: AttentionPlan = implementation.plan_attention(*arguments, **more)
    if plan.block_tables.is_cuda:
        torch.cuda.synchronize()
    return plan


def naive(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None) -> torch.Tensor:
    """q [n, heads, d] are the last n tokens of keys and values [length, kv_heads, d]; in float64, by the definition."""
    n, heads, _ = q.shape
    length, kv_heads, head_dim = keys.shape
    spread = torch.arange(heads, device=q.device) * kv_heads // heads
    k, v = keys.double()[:, spread], values.double()[:, spread]
    scores = torch.einsum("qhd,khd->hqk", q.double(), k) * head_dim**-0.5
    at = torch.arange(length - n, length, device=q.device)[:, None]
    key_at = torch.arange(length, device=q.device)[None, :]
    seen = key_at <= at
    if window is not None:
        seen &= key_at > at - window
    return torch.einsum("hqk,khd->qhd", torch.softmax(scores.masked_fill(~seen, -torch.inf), -1), v)


def assert_attends(found: torch.Tensor, batch: AttentionBatch, tolerance: float) -> None:
    """Where a row has a context, `found` is what is wanted."""
    has_context = torch.isfinite(batch.wanted).all(dim=(1, 2)) if len(batch.wanted) else torch.empty(0)
    error = (found.double() - batch.wanted)[has_context].abs()
    assert len(error) == 0 or error.max().item() <= tolerance
