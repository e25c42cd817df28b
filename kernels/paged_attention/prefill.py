# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: attention of chunks of prompts over pages (Dao, "FlashAttention-2", 2023), long ones on Hopper excepted.

A program does some of a chunk's queries for one head, or, of a chunk with few, for several heads that share keys and
values. Tiles of KV that every query sees whole come first, without masks; then those on the diagonal. A window makes
all of them masked.
"""

import torch
import triton
import triton.language as tl

from kernels import pdl
from kernels.kv_scales import KvScales
from kernels.paged_attention import QUERY_TILE, AttentionPlan, Chunks, hopper
from kernels.paged_attention.pages import tile_blocks, token_offsets, widened

_LOG2_E = 1.4426950408889634
_LONG_CHUNK = 768
# Queries of a chunk, in the mean, from which on Hopper's own kernel was no slower on an H200: 64 chunks of 128 took
# 98 us instead of 95, 32 of 256 107 instead of 119, 16 of 512 132 instead of 168.
_HOPPER_CHUNK = 128
# Queries and KV tokens of a tile, warps and stages: the best of a sweep (docs/performance.md).
_LONG_TILES, _SHORT_TILES = (128, 128, 8, 3), (64, 32, 4, 2)
# What widening takes of the registers leaves no room for more.
_LONG_FP8_TILES = (128, 64, 8, 2)


@triton.jit
def _attend_tiles(
    out, largest, total, q, positions, table_ptr, k_ptr, v_ptr, start, end, k_block_stride, k_slot_stride,
    v_block_stride, v_slot_stride, scale_log2, MASKED: tl.constexpr, WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, DIM_PAD)
    AHEAD: tl.constexpr = STAGES > 2
    ONE_BLOCK: tl.constexpr = BLOCK_SIZE % BLOCK_N == 0
    if AHEAD:
        blocks = tile_blocks(table_ptr, start, end, BLOCK_SIZE, BLOCK_N, ONE_BLOCK)
    for tile_start in tl.range(start, end, BLOCK_N, num_stages=STAGES):
        tokens = tile_start + tl.arange(0, BLOCK_N)
        if not AHEAD:
            blocks = tile_blocks(table_ptr, tile_start, end, BLOCK_SIZE, BLOCK_N, ONE_BLOCK)
        k_offsets = token_offsets(
            blocks, tile_start, k_block_stride, k_slot_stride, BLOCK_SIZE, BLOCK_N, ONE_BLOCK
        )
        v_offsets = token_offsets(
            blocks, tile_start, v_block_stride, v_slot_stride, BLOCK_SIZE, BLOCK_N, ONE_BLOCK
        )
        if AHEAD:
            blocks = tile_blocks(table_ptr, tile_start + BLOCK_N, end, BLOCK_SIZE, BLOCK_N, ONE_BLOCK)
        k_at = k_ptr + k_offsets[None, :] + columns[:, None]
        v_at = v_ptr + v_offsets[:, None] + columns[None, :]
        if MASKED:
            exists = tokens < end
            keys = tl.load(k_at, mask=exists[None, :] & (columns < HEAD_DIM)[:, None], other=0.0)
            values = tl.load(v_at, mask=exists[:, None] & (columns < HEAD_DIM)[None, :], other=0.0)
        elif HEAD_DIM == DIM_PAD:
            keys = tl.load(k_at)
            values = tl.load(v_at)
        else:
            keys = tl.load(k_at, mask=(columns < HEAD_DIM)[:, None], other=0.0)
            values = tl.load(v_at, mask=(columns < HEAD_DIM)[None, :], other=0.0)
        scores = tl.dot(q, keys.to(q.dtype), input_precision="ieee")
        if MASKED:
            seen = (tokens[None, :] <= positions[:, None]) & exists[None, :]
            if WINDOW > 0:
                seen = seen & (tokens[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        shift = new_largest
        if MASKED:
            shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        # Scaled here, where it costs no instruction of its own.
        weights = tl.exp2(scores * scale_log2 - (shift * scale_log2)[:, None])
        shrink = tl.exp2((largest - shift) * scale_log2)
        total = total * shrink + tl.sum(weights, axis=1)
        out = tl.dot(weights.to(q.dtype), values.to(q.dtype), out * shrink[:, None], input_precision="ieee")
        largest = new_largest
    return out, largest, total


@triton.jit(do_not_specialize=["first_row"])
def _prefill_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, tables_ptr, context_lens_ptr, query_lens_ptr, query_starts_ptr,
    tile_chunks_ptr, tile_starts_ptr, first_row, scale_log2, q_row_stride, table_stride, k_block_stride,
    k_head_stride, k_slot_stride, v_block_stride, v_head_stride, v_slot_stride, k_scales_ptr, v_scales_ptr,
    WINDOW: tl.constexpr, NUM_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    DIM_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, QUERY_TILE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PACK: tl.constexpr, STAGES: tl.constexpr, HAS_SCALES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    QUERIES: tl.constexpr = BLOCK_M // PACK
    PARTS: tl.constexpr = QUERY_TILE // QUERIES
    tile = tl.program_id(0) // PARTS
    first_head = tl.program_id(1) * PACK
    kv_head = first_head // (NUM_HEADS // KV_HEADS)
    pdl.wait(PDL)
    chunk = tl.load(tile_chunks_ptr + tile).to(tl.int64)
    query_len = tl.load(query_lens_ptr + chunk)
    start = tl.load(tile_starts_ptr + tile) + (tl.program_id(0) % PARTS) * QUERIES
    if start < query_len:
        row = first_row + chunk
        context_len = tl.load(context_lens_ptr + row)
        members = tl.arange(0, BLOCK_M)
        queries = start + members % QUERIES
        heads = first_head + members // QUERIES
        first_position = context_len - query_len + start
        positions = context_len - query_len + queries
        columns = tl.arange(0, DIM_PAD)
        mask = (queries < query_len)[:, None] & (columns < HEAD_DIM)[None, :]
        rows = tl.load(query_starts_ptr + chunk).to(tl.int64) + queries
        q_at = q_ptr + (rows * q_row_stride + heads * HEAD_DIM)[:, None] + columns[None, :]
        q = tl.load(q_at, mask=mask, other=0.0)
        if HAS_SCALES:
            scale_log2 *= tl.load(k_scales_ptr + kv_head)
            q = widened(q)
        table_ptr = tables_ptr + row * table_stride
        k_head_ptr = k_ptr + kv_head * k_head_stride
        v_head_ptr = v_ptr + kv_head * v_head_stride
        largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        out = tl.zeros([BLOCK_M, DIM_PAD], tl.float32)
        masked_from = (first_position + 1) // BLOCK_N * BLOCK_N
        if WINDOW > 0:
            masked_from = tl.maximum(first_position - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
        else:
            out, largest, total = _attend_tiles(
                out, largest, total, q, positions, table_ptr, k_head_ptr, v_head_ptr, 0, masked_from,
                k_block_stride, k_slot_stride, v_block_stride, v_slot_stride, scale_log2, False, 0, HEAD_DIM,
                DIM_PAD, BLOCK_SIZE, BLOCK_N, STAGES,
            )  # fmt: skip
        end = tl.minimum(context_len, first_position + QUERIES)
        out, largest, total = _attend_tiles(
            out, largest, total, q, positions, table_ptr, k_head_ptr, v_head_ptr, masked_from, end,
            k_block_stride, k_slot_stride, v_block_stride, v_slot_stride, scale_log2, True, WINDOW, HEAD_DIM,
            DIM_PAD, BLOCK_SIZE, BLOCK_N, STAGES,
        )  # fmt: skip
        if HAS_SCALES:
            out *= tl.load(v_scales_ptr + kv_head)
        at = out_ptr + ((rows * NUM_HEADS + heads) * HEAD_DIM)[:, None] + columns[None, :]
        # Queries past the chunk's end may have seen nothing.
        total = tl.where(total == 0.0, 1.0, total)
        tl.store(at, (out / total[:, None]).to(out_ptr.dtype.element_ty), mask=mask)


def _tiles(
    q: torch.Tensor, num_queries: int, num_chunks: int, group: int, has_scales: bool
) -> tuple[tuple[int, int, int, int], int]:
    """Queries times heads of a tile, its KV tokens, warps and stages; and the heads."""
    # Wide heads and float32 have no room for long tiles.
    is_narrow = triton.next_power_of_2(q.shape[2]) <= 128 and q.element_size() <= 2
    if num_queries > _LONG_CHUNK * num_chunks and is_narrow:
        return (_LONG_FP8_TILES if has_scales else _LONG_TILES), 1
    # Places of a tile that no query would fill take other heads' queries, as far as the group divides.
    room = _SHORT_TILES[0] // triton.next_power_of_2(triton.cdiv(num_queries, num_chunks))
    return _SHORT_TILES, max(1, min(room, group & -group))


def prefill_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: AttentionPlan,
    chunks: Chunks,
    out: torch.Tensor,
    scale: float,
    window: int | None,
    scales: KvScales | None = None,
    *,
    block_m: int = 0,
    block_n: int = 0,
    num_warps: int = 0,
    pack: int = 1,
    num_stages: int = 0,
) -> None:
    """Attention of the chunks of a batch into their places of out [queries, heads, d].

    With tiles given it is this module's kernel that does it, whatever the device and the batch.
    """
    num_heads, head_dim = q.shape[1], q.shape[2]
    num_kv_heads, block_size = k_cache.shape[1], k_cache.shape[2]
    dim_pad = triton.next_power_of_2(head_dim)
    if not block_m:
        group, num_queries = num_heads // num_kv_heads, len(q) - plan.num_decoding
        if window is None and scales is None and num_queries >= _HOPPER_CHUNK * len(chunks.query_lens):
            pages = hopper.pages_for(q, k_cache, v_cache)
            if pages is not None:
                hopper.long_prefill_attention(q, pages, num_kv_heads, block_size, plan, chunks, out, scale)
                return
        sizes, pack = _tiles(q, num_queries, len(chunks.query_lens), group, scales is not None)
        block_m, block_n, num_warps, num_stages = sizes
    _prefill_kernel[(len(chunks.tile_chunks) * (QUERY_TILE * pack // block_m), num_heads // pack)](
        q, k_cache, v_cache, out, plan.block_tables, plan.context_lens, chunks.query_lens, chunks.query_starts,
        chunks.tile_chunks, chunks.tile_starts, plan.num_decoding, scale * _LOG2_E,
        q.stride(0), plan.block_tables.stride(0),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        v_cache.stride(0), v_cache.stride(1), v_cache.stride(2), *(scales or (q, q)),
        WINDOW=window or 0, NUM_HEADS=num_heads, KV_HEADS=num_kv_heads, HEAD_DIM=head_dim, DIM_PAD=dim_pad,
        BLOCK_SIZE=block_size, QUERY_TILE=QUERY_TILE, BLOCK_M=block_m, BLOCK_N=block_n, PACK=pack,
        STAGES=num_stages, HAS_SCALES=scales is not None, num_warps=num_warps, **pdl.options(),
    )  # fmt: skip
