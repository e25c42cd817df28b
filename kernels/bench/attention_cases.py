"""Paged attention: rows that decode at a context, and whole prompts."""

from collections.abc import Iterator
from functools import partial

import torch

from kernels.bench.cases import BFLOAT16_BYTES, Case, Sizes, num_copies
from kernels.kv_scales import FP8, KvScales
from kernels.paged_attention import (
    Chunks,
    SharedPrefixes,
    group_members,
    paged_attention,
    plan_attention,
    query_tiles,
)
from kernels.rope_attention import Rotation, rope_attention

# What the caches of one case may take.
_MAX_CACHE_BYTES = 16 << 30


def decode_cases(sizes: Sizes, rows: int, context: int, block_size: int, device: str) -> Iterator[Case]:
    """One query per row: the plan of a step, and the attention of one layer."""
    cache_bytes = 2 * rows * context * sizes.kv_heads * sizes.head_dim * BFLOAT16_BYTES
    if cache_bytes > _MAX_CACHE_BYTES:
        return
    tables, lens = _tables([context] * rows, block_size, device)
    make_plan = partial(
        plan_attention, tables, lens, rows, None,
        num_heads=sizes.heads, num_kv_heads=sizes.kv_heads, head_dim=sizes.head_dim,
    )  # fmt: skip
    detail = f"context {context}"
    yield Case("attention plan", rows, tables.nbytes, 0, [make_plan], detail)
    q = torch.randn(rows, sizes.heads, sizes.head_dim, device=device).bfloat16()
    plan, scale = make_plan(), sizes.head_dim**-0.5
    caches = [
        _caches(sizes, tables.numel(), block_size, device)
        for _ in range(num_copies(cache_bytes) if device == "cuda" else 1)
    ]
    calls = [partial(paged_attention, q, k, v, plan, scale) for k, v in caches]
    flops = 4 * rows * context * sizes.heads * sizes.head_dim
    yield Case("attention: decode", rows, cache_bytes + 2 * q.nbytes, flops, calls, detail)
    k_new, v_new = torch.randn(2, rows, sizes.kv_heads, sizes.head_dim, device=device).bfloat16()
    norm = torch.ones(sizes.head_dim, device=device).bfloat16() if sizes.has_qk_norm else None
    positions = lens.long() - 1
    slots = tables[:, -1].long() * block_size + positions % block_size
    rotation = Rotation(
        torch.randn(context, sizes.head_dim, device=device), positions, slots, norm, norm, 1e-6
    )
    calls = [partial(rope_attention, q, k_new, v_new, rotation, k, v, plan, scale) for k, v in caches]
    num_bytes = cache_bytes + 2 * q.nbytes + 4 * k_new.nbytes
    yield Case("rotation, write, attention", rows, num_bytes, flops, calls, detail)
    scales = KvScales(*torch.ones(2, sizes.kv_heads, device=device))
    small = [(k.to(FP8), v.to(FP8)) for k, v in caches]
    calls = [partial(paged_attention, q, k, v, plan, scale, None, scales) for k, v in small]
    yield Case("attention: decode, FP8 cache", rows, cache_bytes // 2 + 2 * q.nbytes, flops, calls, detail)


def shared_cases(sizes: Sizes, rows: int, context: int, block_size: int, device: str) -> Iterator[Case]:
    """Rows whose first blocks are the same, all but one of each, in full groups: read once for a group."""
    members = group_members(sizes.heads, sizes.kv_heads)
    if rows < members or members == 1:
        return
    tables, lens = _tables([context] * rows, block_size, device)
    shared = (context - 1) // block_size
    tables[:, :shared] = tables[0, :shared]
    prefixes = SharedPrefixes(
        torch.full_like(lens, shared * block_size),
        torch.arange(rows // members * members, dtype=torch.int32, device=device).view(-1, members),
    )
    prefixes.lens[rows // members * members :] = 0
    plan = plan_attention(
        tables, lens, rows, None, num_heads=sizes.heads, num_kv_heads=sizes.kv_heads, head_dim=sizes.head_dim,
        prefixes=prefixes,
    )  # fmt: skip
    q = torch.randn(rows, sizes.heads, sizes.head_dim, device=device).bfloat16()
    k, v = _caches(sizes, tables.numel(), block_size, device)
    call = partial(paged_attention, q, k, v, plan, sizes.head_dim**-0.5)
    token_bytes = 2 * sizes.kv_heads * sizes.head_dim * BFLOAT16_BYTES
    tokens = len(prefixes.members) * shared * block_size + int((lens - prefixes.lens).sum())
    flops = 4 * rows * context * sizes.heads * sizes.head_dim
    num_bytes = tokens * token_bytes + 2 * q.nbytes
    yield Case("attention: decode in groups", rows, num_bytes, flops, [call], f"context {context}")


def prefill_cases(
    sizes: Sizes, prompts: int, prompt_len: int, block_size: int, device: str
) -> Iterator[Case]:
    """Whole prompts in one step, nothing cached before."""
    lens_list = [prompt_len] * prompts
    tables, lens = _tables(lens_list, block_size, device)
    starts = torch.arange(prompts, dtype=torch.int32, device=device) * prompt_len
    tile_chunks, tile_starts = (torch.from_numpy(tile).to(device) for tile in query_tiles(lens_list))
    chunks = Chunks(lens, starts, tile_chunks, tile_starts)
    plan = plan_attention(
        tables, lens, 0, chunks, num_heads=sizes.heads, num_kv_heads=sizes.kv_heads, head_dim=sizes.head_dim
    )
    tokens = prompts * prompt_len
    q = torch.randn(tokens, sizes.heads, sizes.head_dim, device=device).bfloat16()
    k, v = _caches(sizes, tables.numel(), block_size, device)
    call = partial(paged_attention, q, k, v, plan, sizes.head_dim**-0.5)
    flops = 2 * tokens * (prompt_len + 1) * sizes.heads * sizes.head_dim
    num_bytes = 2 * q.nbytes + 2 * tokens * sizes.kv_heads * sizes.head_dim * BFLOAT16_BYTES
    yield Case("attention: prefill", tokens, num_bytes, flops, [call], f"{prompts} prompts")


def _tables(lens: list[int], block_size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Block tables of rows that share nothing, their blocks in random order, and context lengths."""
    per_row = -(-max(lens) // block_size)
    blocks = torch.randperm(len(lens) * per_row, device=device).int()
    return blocks.view(len(lens), per_row), torch.tensor(lens, dtype=torch.int32, device=device)


def _caches(sizes: Sizes, num_blocks: int, block_size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (num_blocks, sizes.kv_heads, block_size, sizes.head_dim)
    return (
        torch.randn(shape, device=device, dtype=torch.bfloat16),
        torch.randn(shape, device=device, dtype=torch.bfloat16),
    )
