# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Gluon, for Hopper: attention of long chunks of prompts over pages (Shah et al., "FlashAttention-3", 2024).

A program does QUERY_TILE of a chunk's queries for one head. It walks the tiles of KV from the last that its queries see
to the first. In each turn the tensor cores are given two products, the output's share of the tile before and the scores
of the tile after; meanwhile the weights of the tile between are worked out, and pages further on are on their way.
"""

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from kernels import pdl
from kernels.paged_attention import QUERY_TILE, AttentionPlan, Chunks

_LOG2_E = 1.4426950408889634
_WARPS = QUERY_TILE // 16
_BLOCK_N = 64
_AHEAD = 2
# Triton 3.7 has another name for it.
_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@gluon.constexpr_function
def copy_layout(dim_pad):
    """Threads that load 16 bytes each, row after row."""
    return gl.BlockedLayout([1, 8], [256 // dim_pad, dim_pad // 8], [_WARPS, 1], [1, 0])


@gluon.constexpr_function
def product_layout(columns):
    """Of a product's result [QUERY_TILE, columns]."""
    return gl.NVMMADistributedLayout([3, 0], [_WARPS, 1], [16, columns, 16])


@gluon.jit
def fetch_tile(
    keys, values, pages, start, end, BLOCK_SIZE: gl.constexpr, HEAD_DIM: gl.constexpr, IS_WHOLE: gl.constexpr
):
    """Ask for the tile of tokens from `start`; those from `end` on, if there may be such, become zeros."""
    table_ptr, k_ptr, v_ptr, k_block_stride, k_slot_stride, v_block_stride, v_slot_stride = pages
    DIM_PAD: gl.constexpr = keys.shape[1]
    LAYOUT: gl.constexpr = copy_layout(DIM_PAD)
    tokens = start + gl.arange(0, keys.shape[0], layout=gl.SliceLayout(1, LAYOUT))
    columns = gl.arange(0, DIM_PAD, layout=gl.SliceLayout(0, LAYOUT))[None, :]
    slots = tokens % BLOCK_SIZE
    # Also of a tile that does not exist, and lies in the first one's place.
    blocks = gl.load(table_ptr + tokens // BLOCK_SIZE, mask=tokens < end, other=0).to(gl.int64)
    k_at = k_ptr + (blocks * k_block_stride + slots * k_slot_stride)[:, None] + columns
    v_at = v_ptr + (blocks * v_block_stride + slots * v_slot_stride)[:, None] + columns
    if not IS_WHOLE:
        mask = (tokens < end)[:, None] & (columns < HEAD_DIM)
        async_copy.async_copy_global_to_shared(keys, k_at, mask=mask)
        async_copy.async_copy_global_to_shared(values, v_at, mask=mask)
    elif HEAD_DIM < DIM_PAD:
        async_copy.async_copy_global_to_shared(keys, k_at, mask=columns < HEAD_DIM)
        async_copy.async_copy_global_to_shared(values, v_at, mask=columns < HEAD_DIM)
    else:
        async_copy.async_copy_global_to_shared(keys, k_at)
        async_copy.async_copy_global_to_shared(values, v_at)
    async_copy.commit_group()


@gluon.jit
def tiles_arrived(NUM_ASKED: gl.constexpr, FENCED: gl.constexpr):
    """Wait for all tiles but the last NUM_ASKED that were asked for, and let the tensor cores see them."""
    async_copy.wait_group(NUM_ASKED)
    if FENCED:
        fence_async_shared()
    _barrier()


@gluon.jit
def weigh(scores, largest, total, positions, start, scale, MASKED: gl.constexpr, WINDOW: gl.constexpr):
    """Weights of a tile's tokens, the rows' largest scores and sums of weights, and what shrinks what came before."""
    if MASKED:
        tokens = start + gl.arange(0, scores.shape[1], layout=gl.SliceLayout(0, scores.type.layout))
        seen = tokens[None, :] <= positions[:, None]
        if WINDOW > 0:
            seen = seen & (tokens[None, :] > positions[:, None] - WINDOW)
        scores = gl.where(seen, scores, float("-inf"))
    new_largest = gl.maximum(largest, gl.max(scores, axis=1))
    shift = new_largest * scale
    if MASKED:
        # Nothing seen so far: any finite number will do.
        shift = gl.where(new_largest == float("-inf"), 0.0, shift)
    weights = gl.exp2(scores * scale[:, None] - shift[:, None])
    shrink = gl.exp2(largest * scale - shift)
    return weights, new_largest, total * shrink + gl.sum(weights, axis=1), shrink


@gluon.jit
def rounded(weights, dtype: gl.constexpr, DIM_PAD: gl.constexpr):
    """Weights as a product's left side. By two at a time: LLVM would carry them from turn to turn in float32."""
    if dtype == gl.bfloat16:
        packed = gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [weights], dtype=gl.bfloat16, is_pure=True, pack=2
        )
    else:
        gl.static_assert(dtype == gl.float16)
        packed = gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [weights], dtype=gl.float16, is_pure=True, pack=2
        )
    return gl.convert_layout(packed, gl.DotOperandLayout(0, product_layout(DIM_PAD), 2))


@gluon.jit
def _attend_tiles(
    scores, weights, out, largest, total, q, keys, values, scales, pages, positions, first, until, last_start,
    MASKED: gl.constexpr, WINDOW: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_SIZE: gl.constexpr, AHEAD: gl.constexpr,
    FENCED: gl.constexpr,
):  # fmt: skip
    """Tiles `first` to `until`, counted from the last; `scores` are the first's, `weights` those of the one before."""
    BLOCK_M: gl.constexpr = q.shape[0]
    DIM_PAD: gl.constexpr = q.shape[1]
    BLOCK_N: gl.constexpr = keys.shape[1]
    blank = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, layout=product_layout(BLOCK_N))
    for number in range(first, until):
        tiles_arrived(AHEAD - 1, FENCED)
        sums = warpgroup_mma(weights, values.index((number - 1) % (AHEAD + 3)), out, is_async=True)
        # The last turn's next scores and the last tiles asked for are of no tile, and go nowhere.
        next_keys = keys.index((number + 1) % (AHEAD + 1)).permute((1, 0))
        next_scores = warpgroup_mma(q, next_keys, blank, use_acc=False, is_async=True)
        # Every warp is done with the turn before. What is read behind the barrier keeps ptxas from issuing a product
        # only when most weights are done.
        _barrier()
        scale = scales.load(gl.SliceLayout(1, product_layout(BLOCK_N)))
        asked = number + 1 + AHEAD
        fetch_tile(
            keys.index(asked % (AHEAD + 1)), values.index(asked % (AHEAD + 3)), pages,
            gl.maximum(last_start - asked * BLOCK_N, 0), last_start, BLOCK_SIZE, HEAD_DIM, True,
        )  # fmt: skip
        wide, largest, total, shrink = weigh(
            scores, largest, total, positions, last_start - number * BLOCK_N, scale, MASKED, WINDOW
        )
        new_weights = rounded(wide, q.dtype, DIM_PAD)
        out, scores = warpgroup_mma_wait(0, deps=[sums, next_scores])
        out = out * gl.convert_layout(shrink, gl.SliceLayout(1, product_layout(DIM_PAD)))[:, None]
        weights = new_weights
    return scores, weights, out, largest, total


@gluon.jit
def _attend_chunk(
    q, keys, values, pages, first_position, end, scale_log2, WINDOW: gl.constexpr, HEAD_DIM: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, AHEAD: gl.constexpr,
    FENCED: gl.constexpr,
):  # fmt: skip
    """Output of queries, which were asked for, at positions from `first_position`, over tokens before `end`."""
    BLOCK_M: gl.constexpr = q.shape[0]
    DIM_PAD: gl.constexpr = q.shape[1]
    BLOCK_N: gl.constexpr = keys.shape[1]
    SCORES: gl.constexpr = product_layout(BLOCK_N)
    OUT: gl.constexpr = product_layout(DIM_PAD)
    last_start = (end - 1) // BLOCK_N * BLOCK_N
    fetch_tile(keys.index(0), values.index(0), pages, last_start, end, BLOCK_SIZE, HEAD_DIM, False)
    for number in gl.static_range(1, AHEAD + 1):
        start = gl.maximum(last_start - number * BLOCK_N, 0)
        fetch_tile(keys.index(number), values.index(number), pages, start, end, BLOCK_SIZE, HEAD_DIM, True)
    positions = first_position + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, SCORES))
    largest = gl.full([BLOCK_M], float("-inf"), gl.float32, layout=gl.SliceLayout(1, SCORES))
    total = gl.zeros([BLOCK_M], gl.float32, layout=gl.SliceLayout(1, SCORES))
    out = gl.zeros([BLOCK_M, DIM_PAD], gl.float32, layout=OUT)
    blank = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, layout=SCORES)
    scale = gl.full([BLOCK_M], scale_log2, gl.float32, layout=gl.SliceLayout(1, SCORES))
    scales = gl.allocate_shared_memory(gl.float32, [BLOCK_M], gl.SwizzledSharedLayout(1, 1, 1, [0]), scale)
    tiles_arrived(AHEAD, FENCED)
    scores = warpgroup_mma(q, keys.index(0).permute((1, 0)), blank, use_acc=False)
    tiles_arrived(AHEAD - 1, FENCED)
    next_scores = warpgroup_mma(q, keys.index(1).permute((1, 0)), blank, use_acc=False, is_async=True)
    start = gl.maximum(last_start - (AHEAD + 1) * BLOCK_N, 0)
    fetch_tile(keys.index(0), values.index(AHEAD + 1), pages, start, end, BLOCK_SIZE, HEAD_DIM, True)
    wide, largest, total, _ = weigh(scores, largest, total, positions, last_start, scale, True, WINDOW)
    weights = rounded(wide, q.dtype, DIM_PAD)
    scores = warpgroup_mma_wait(0, deps=[next_scores])
    first_tile = 0
    if WINDOW > 0:
        first_tile = gl.maximum(first_position - WINDOW + 1, 0) // BLOCK_N
    num_tiles = last_start // BLOCK_N - first_tile + 1
    num_masked = num_tiles
    if WINDOW == 0:
        num_masked = gl.maximum(num_tiles - (first_position + 1) // BLOCK_N, 1)
    scores, weights, out, largest, total = _attend_tiles(
        scores, weights, out, largest, total, q, keys, values, scales, pages, positions, 1, num_masked, last_start,
        True, WINDOW, HEAD_DIM, BLOCK_SIZE, AHEAD, FENCED,
    )  # fmt: skip
    if WINDOW == 0:
        scores, weights, out, largest, total = _attend_tiles(
            scores, weights, out, largest, total, q, keys, values, scales, pages, positions, num_masked, num_tiles,
            last_start, False, 0, HEAD_DIM, BLOCK_SIZE, AHEAD, FENCED,
        )  # fmt: skip
    tiles_arrived(0, FENCED)
    out = warpgroup_mma(weights, values.index((num_tiles - 1) % (AHEAD + 3)), out)
    # Queries past the chunk's end may have seen nothing.
    total = gl.where(total == 0.0, 1.0, total)
    return out / gl.convert_layout(total, gl.SliceLayout(1, OUT))[:, None]


@gluon.jit(do_not_specialize=["first_row"])
def _long_prefill_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, tables_ptr, context_lens_ptr, query_lens_ptr, query_starts_ptr,
    tile_chunks_ptr, tile_starts_ptr, first_row, scale_log2, q_row_stride, table_stride, k_block_stride,
    k_head_stride, k_slot_stride, v_block_stride, v_head_stride, v_slot_stride, WINDOW: gl.constexpr,
    NUM_HEADS: gl.constexpr, KV_HEADS: gl.constexpr, HEAD_DIM: gl.constexpr, DIM_PAD: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, AHEAD: gl.constexpr, FENCED: gl.constexpr,
    PDL: gl.constexpr,
):  # fmt: skip
    LAYOUT: gl.constexpr = copy_layout(DIM_PAD)
    dtype: gl.constexpr = q_ptr.dtype.element_ty
    SHARED: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BLOCK_N, DIM_PAD], dtype)
    tile = gl.program_id(0)
    head = gl.program_id(1)
    kv_head = head // (NUM_HEADS // KV_HEADS)
    pdl.wait(PDL)
    chunk = gl.load(tile_chunks_ptr + tile).to(gl.int64)
    start = gl.load(tile_starts_ptr + tile)
    query_len = gl.load(query_lens_ptr + chunk)
    query_start = gl.load(query_starts_ptr + chunk).to(gl.int64)
    row = first_row + chunk
    context_len = gl.load(context_lens_ptr + row)
    if (start < query_len) & (context_len > 0):
        q = gl.allocate_shared_memory(dtype, [BLOCK_M, DIM_PAD], SHARED)
        keys = gl.allocate_shared_memory(dtype, [AHEAD + 1, BLOCK_N, DIM_PAD], SHARED)
        values = gl.allocate_shared_memory(dtype, [AHEAD + 3, BLOCK_N, DIM_PAD], SHARED)
        queries = start + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, LAYOUT))
        columns = gl.arange(0, DIM_PAD, layout=gl.SliceLayout(0, LAYOUT))[None, :]
        mask = (queries < query_len)[:, None] & (columns < HEAD_DIM)
        rows = query_start + queries
        q_at = q_ptr + (rows * q_row_stride + head * HEAD_DIM)[:, None] + columns
        async_copy.async_copy_global_to_shared(q, q_at, mask=mask)
        pages = (
            tables_ptr + row * table_stride, k_ptr + kv_head * k_head_stride, v_ptr + kv_head * v_head_stride,
            k_block_stride, k_slot_stride, v_block_stride, v_slot_stride,
        )  # fmt: skip
        first_position = context_len - query_len + start
        end = gl.minimum(context_len, first_position + BLOCK_M)
        found = _attend_chunk(
            q,
            keys,
            values,
            pages,
            first_position,
            end,
            scale_log2,
            WINDOW,
            HEAD_DIM,
            BLOCK_SIZE,
            AHEAD,
            FENCED,
        )
        # By way of the queries' place, so that whole rows are written.
        q.store(found.to(dtype))
        _barrier()
        at = out_ptr + ((rows * NUM_HEADS + head) * HEAD_DIM)[:, None] + columns
        gl.store(at, q.load(LAYOUT), mask=mask)


def long_prefill_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: AttentionPlan,
    chunks: Chunks,
    out: torch.Tensor,
    scale: float,
    window: int | None,
    *,
    block_n: int = _BLOCK_N,
    ahead: int = _AHEAD,
    is_fenced: bool = True,
) -> None:
    """Attention of the chunks of a batch into their places of out [queries, heads, d], d at most 128, in 16 bits.

    `block_n` tokens make a tile; `ahead` of them are on their way while one is worked on.
    """
    num_heads, head_dim = q.shape[1], q.shape[2]
    _long_prefill_kernel[(len(chunks.tile_chunks), num_heads)](
        q, k_cache, v_cache, out, plan.block_tables, plan.context_lens, chunks.query_lens, chunks.query_starts,
        chunks.tile_chunks, chunks.tile_starts, plan.num_decoding, scale * _LOG2_E,
        q.stride(0), plan.block_tables.stride(0),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        v_cache.stride(0), v_cache.stride(1), v_cache.stride(2),
        WINDOW=window or 0, NUM_HEADS=num_heads, KV_HEADS=k_cache.shape[1], HEAD_DIM=head_dim,
        DIM_PAD=triton.next_power_of_2(head_dim), BLOCK_SIZE=k_cache.shape[2], BLOCK_M=QUERY_TILE,
        BLOCK_N=block_n, AHEAD=ahead, FENCED=is_fenced, num_warps=_WARPS, **pdl.options(),
    )  # fmt: skip
