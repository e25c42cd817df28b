# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Gluon, for Hopper: attention of chunks of a tile and more over pages (Shah et al., "FlashAttention-3", 2024).

One program per multiprocessor goes through items, which are QUERY_TILE queries of a chunk for one head. Two groups of
four warps do half of an item's queries each; three more warps fetch keys, values and queries. In each step a group
gives the tensor cores the scores of a tile of tokens and the output's share of the tile before, and works out the
tile's weights while the second product runs. The groups take turns in giving products, so that one weighs while the
other's products run. The first step of an item holds the last product of the item before.
"""

import functools
from typing import NamedTuple

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from kernels import pdl
from kernels.paged_attention import QUERY_TILE, AttentionPlan, Chunks
from kernels.paged_attention.hopper_fetch import (
    COLUMNS,
    NO_PAGE,
    QUERY_ROWS,
    fetch_queries,
    fetch_tokens,
    item_of,
    load_first_row,
    load_lengths,
    load_tile,
    num_turns,
    seen_tiles,
)

_LOG2_E = 1.4426950408889634
_BLOCK_N = 128
_GROUP_ROWS = gl.constexpr(QUERY_TILE // 2)
# Registers of a thread that works and of one that fetches: 168 for each of twelve warps at the start.
_WORK_REGISTERS, _FETCH_REGISTERS = gl.constexpr(232), gl.constexpr(40)
_SHARED = gl.NVMMASharedLayout(128, 16)
# Triton 3.7 has another name for it.
_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier


@gluon.constexpr_function
def _product_layout(columns):
    """Of a group's result [_GROUP_ROWS, columns]."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.constexpr_function
def _row_layout(columns):
    """Of a number for each row of such a result."""
    return gl.SliceLayout(1, _product_layout(columns))


@gluon.jit
def _rounded(values, dtype: gl.constexpr):
    """By two at a time: LLVM takes more instructions, and carries what it rounds in float32."""
    if dtype == gl.bfloat16:
        return gl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [values], dtype=gl.bfloat16, is_pure=True, pack=2
        )
    else:
        gl.static_assert(dtype == gl.float16)
        return gl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [values], dtype=gl.float16, is_pure=True, pack=2
        )


@gluon.jit
def _weigh(
    scores, largest, total, positions, start, scale_log2, HEAD_DIM: gl.constexpr, MASKED: gl.constexpr
):
    """Weights of a tile's tokens, the rows' largest scores and sums of weights, and what shrinks what came before.

    Token 0 is in the first tile and every query sees it, so that no row is without a largest score.
    """
    if MASKED:
        tokens = gl.arange(0, scores.shape[1], layout=gl.SliceLayout(0, scores.type.layout))
        scores = gl.where(tokens[None, :] <= (positions - start)[:, None], scores, float("-inf"))
    new_largest = gl.maximum(largest, gl.max(scores, axis=1))
    shift = new_largest * scale_log2
    weights = gl.exp2(scores * scale_log2 - shift[:, None])
    shrink = gl.exp2(largest * scale_log2 - shift)
    total = total * shrink + gl.sum(weights, axis=1)
    return weights, new_largest, total, gl.convert_layout(shrink, _row_layout(HEAD_DIM))


@gluon.jit
def _attend_tiles(
    out, shrink, largest, total, weights, count, first, until, last, q, keys, values, k_full, k_empty, v_full, v_empty,
    turns, positions, scale_log2, GROUP: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Tiles `first` to `until` of an item's `last`, the first of which has arrived; `weights` are those of the tile
    before, with which `out`, still to be shrunk, has not met its values. `count` tiles were done in all."""
    HEAD_DIM: gl.constexpr = keys.shape[2]
    BLOCK_N: gl.constexpr = keys.shape[1]
    blank = gl.zeros([_GROUP_ROWS, BLOCK_N], gl.float32, layout=_product_layout(BLOCK_N))
    for tile in range(first, until):
        stage = count & 1
        before = stage ^ 1
        mbarrier.wait(turns.index(GROUP), stage)
        scores = warpgroup_mma(q, keys.index(stage).permute((1, 0)), blank, use_acc=False, is_async=True)
        mbarrier.wait(v_full.index(before), ((count - 1) >> 1) & 1)
        out = out * shrink[:, None]
        sums = warpgroup_mma(weights, values.index(before), out, is_async=True)
        mbarrier.arrive(turns.index(1 - GROUP))
        scores = warpgroup_mma_wait(1, deps=[scores])
        mbarrier.arrive(k_empty.index(stage))
        wide, largest, total, shrink = _weigh(
            scores, largest, total, positions, tile * BLOCK_N, scale_log2, HEAD_DIM, MASKED
        )
        weights = gl.convert_layout(
            _rounded(wide, q.dtype), gl.DotOperandLayout(0, _product_layout(HEAD_DIM), 2)
        )
        count += 1
        # Its loop keeps ptxas from waiting for the second product before the weights are worked out.
        mbarrier.wait(k_full.index(before), (count >> 1) & 1, pred=tile + 1 < last)
        out, weights = warpgroup_mma_wait(0, deps=[sums, weights])
        mbarrier.arrive(v_empty.index(before))
    return out, shrink, largest, total, weights, count


@gluon.jit
def _blank_tail(pieces, stage, tokens, BLOCK_N: gl.constexpr, BLOCK_SIZE: gl.constexpr, STRIPS: gl.constexpr):
    """Zeros for values past the `tokens` of a tile in their last page: what lies there need not be a number, and no
    weight, not even 0, would make it vanish. Both groups do all of it and write the same."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    exists = (gl.arange(0, BLOCK_SIZE, layout=gl.SliceLayout(1, LAYOUT)) < tokens % BLOCK_SIZE)[:, None]
    PAGES: gl.constexpr = BLOCK_N // BLOCK_SIZE
    for strip in gl.static_range(STRIPS):
        piece = pieces.index((stage * STRIPS + strip) * PAGES + tokens // BLOCK_SIZE)
        found = piece.load(LAYOUT)
        piece.store(gl.where(exists, found, gl.zeros_like(found)))
    fence_async_shared()
    _barrier()


@gluon.jit
def _store(out_ptr, out, total, row, left, head, GROUP: gl.constexpr, NUM_HEADS: gl.constexpr):
    """Rows of the batch from `row` on, `left` of them in both groups together."""
    HEAD_DIM: gl.constexpr = out.shape[1]
    out = out * gl.convert_layout(1.0 / total, _row_layout(HEAD_DIM))[:, None]
    members = GROUP * _GROUP_ROWS + gl.arange(0, _GROUP_ROWS, layout=_row_layout(HEAD_DIM))
    columns = gl.arange(0, HEAD_DIM, layout=gl.SliceLayout(0, _product_layout(HEAD_DIM)))
    out_ptr += (gl.cast(row, gl.int64) * NUM_HEADS + head) * HEAD_DIM
    at = out_ptr + (members * (NUM_HEADS * HEAD_DIM))[:, None] + columns[None, :]
    gl.store(at, _rounded(out, out_ptr.dtype.element_ty), mask=(members < left)[:, None])


@gluon.jit
def _begin_item(
    out, shrink, total, weights, count, items, done, positions, last, queries, keys, values, value_pieces, barriers,
    out_ptr, scale_log2, GROUP: gl.constexpr, NUM_HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr,
):  # fmt: skip
    """The first tile of an item, beside the last product of the item before, `done`, whose output is stored."""
    q_full, _q_empty, k_full, k_empty, v_full, v_empty, turns = barriers
    done_row, done_left, done_head, done_tokens = done
    HEAD_DIM: gl.constexpr = queries.shape[2]
    BLOCK_N: gl.constexpr = keys.shape[1]
    blank = gl.zeros([_GROUP_ROWS, BLOCK_N], gl.float32, layout=_product_layout(BLOCK_N))
    stage = count & 1
    before = stage ^ 1
    mbarrier.wait(v_full.index(before), ((count - 1) >> 1) & 1, pred=count > 0)
    if done_tokens % BLOCK_SIZE > 0:
        _blank_tail(value_pieces, before, done_tokens, BLOCK_N, BLOCK_SIZE, HEAD_DIM // COLUMNS)
    out = out * shrink[:, None]
    mbarrier.wait(q_full.index(items & 1), (items >> 1) & 1)
    # Queries do not come by way of the copy engine.
    fence_async_shared()
    q = queries.index(items & 1).slice(GROUP * _GROUP_ROWS, _GROUP_ROWS)
    mbarrier.wait(k_full.index(stage), (count >> 1) & 1)
    mbarrier.wait(turns.index(GROUP), stage)
    sums = warpgroup_mma(weights, values.index(before), out, is_async=True)
    scores = warpgroup_mma(q, keys.index(stage).permute((1, 0)), blank, use_acc=False, is_async=True)
    mbarrier.arrive(turns.index(1 - GROUP))
    out = warpgroup_mma_wait(1, deps=[sums])
    mbarrier.arrive(v_empty.index(before), pred=count > 0)
    _store(out_ptr, out, total, done_row, done_left, done_head, GROUP, NUM_HEADS)
    mbarrier.wait(k_full.index(before), ((count + 1) >> 1) & 1, pred=last > 1)
    scores = warpgroup_mma_wait(0, deps=[scores])
    mbarrier.arrive(k_empty.index(stage))
    largest = gl.full([_GROUP_ROWS], float("-inf"), gl.float32, layout=_row_layout(BLOCK_N))
    total = gl.zeros([_GROUP_ROWS], gl.float32, layout=_row_layout(BLOCK_N))
    wide, largest, total, shrink = _weigh(scores, largest, total, positions, 0, scale_log2, HEAD_DIM, True)
    weights = gl.convert_layout(
        _rounded(wide, queries.dtype), gl.DotOperandLayout(0, _product_layout(HEAD_DIM), 2)
    )
    return q, shrink, largest, total, weights


@gluon.jit
def _end_last(
    out, shrink, total, weights, count, done, values, value_pieces, v_full, out_ptr, GROUP: gl.constexpr,
    NUM_HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr,
):  # fmt: skip
    """The last product of the last item, `done`, and its output."""
    done_row, done_left, done_head, done_tokens = done
    BLOCK_N: gl.constexpr = values.shape[1]
    STRIPS: gl.constexpr = values.shape[2] // COLUMNS
    before = (count - 1) & 1
    mbarrier.wait(v_full.index(before), ((count - 1) >> 1) & 1)
    if done_tokens % BLOCK_SIZE > 0:
        _blank_tail(value_pieces, before, done_tokens, BLOCK_N, BLOCK_SIZE, STRIPS)
    out = warpgroup_mma(weights, values.index(before), out * shrink[:, None], is_async=True)
    out = warpgroup_mma_wait(0, deps=[out])
    _store(out_ptr, out, total, done_row, done_left, done_head, GROUP, NUM_HEADS)


@gluon.jit
def _attend(
    queries, keys, values, value_pieces, barriers, work, out_ptr, scale_log2, GROUP: gl.constexpr,
    NUM_HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr,
):  # fmt: skip
    """Four warps: GROUP's queries of item after item."""
    _q_full, q_empty, k_full, k_empty, v_full, v_empty, turns = barriers
    HEAD_DIM: gl.constexpr = queries.shape[2]
    BLOCK_N: gl.constexpr = keys.shape[1]
    WEIGHTS: gl.constexpr = gl.DotOperandLayout(0, _product_layout(HEAD_DIM), 2)
    nothing = gl.zeros([_GROUP_ROWS, HEAD_DIM], gl.float32, layout=_product_layout(HEAD_DIM))
    unshrunk = gl.full([_GROUP_ROWS], 1.0, gl.float32, layout=_row_layout(HEAD_DIM))
    # Of the item before: at first none, whose output goes nowhere.
    out, shrink = nothing, unshrunk
    total = gl.full([_GROUP_ROWS], 1.0, gl.float32, layout=_row_layout(BLOCK_N))
    weights = gl.zeros([_GROUP_ROWS, BLOCK_N], queries.dtype, layout=WEIGHTS)
    done_row, done_left, done_head, done_tokens = 0, 0, 0, 0
    count = 0
    items = 0
    if GROUP == 1:
        mbarrier.arrive(turns.index(0))
    chunk, start = load_tile(0, work, NUM_HEADS)
    query_len, context_len = load_lengths(chunk, work)
    first_row = load_first_row(chunk, work)
    next_chunk, next_start = load_tile(1, work, NUM_HEADS)
    for turn in range(num_turns(work, NUM_HEADS)):
        next_len, next_context = load_lengths(next_chunk, work)
        next_row = load_first_row(next_chunk, work)
        later_chunk, later_start = load_tile(turn + 2, work, NUM_HEADS)
        if start < query_len:
            first_position = context_len - query_len + start + GROUP * _GROUP_ROWS
            positions = first_position + gl.arange(0, _GROUP_ROWS, layout=_row_layout(BLOCK_N))
            last = seen_tiles(start, query_len, context_len, 2 * _GROUP_ROWS, BLOCK_N)
            whole = (first_position + 1) // BLOCK_N
            q, shrink, largest, total, weights = _begin_item(
                out, shrink, total, weights, count, items, (done_row, done_left, done_head, done_tokens), positions,
                last, queries, keys, values, value_pieces, barriers, out_ptr, scale_log2, GROUP, NUM_HEADS, BLOCK_SIZE,
            )  # fmt: skip
            out, shrink, largest, total, weights, count = _attend_tiles(
                nothing, unshrunk, largest, total, weights, count + 1, 1, whole, last, q, keys, values, k_full, k_empty,
                v_full, v_empty, turns, positions, scale_log2, GROUP, False,
            )  # fmt: skip
            out, shrink, largest, total, weights, count = _attend_tiles(
                out, shrink, largest, total, weights, count, gl.maximum(whole, 1), last, last, q, keys, values, k_full,
                k_empty, v_full, v_empty, turns, positions, scale_log2, GROUP, True,
            )  # fmt: skip
            mbarrier.arrive(q_empty.index(items & 1))
            items += 1
            done_row = first_row + start
            done_left = query_len - start
            done_head = item_of(turn) % NUM_HEADS
            done_tokens = gl.minimum(context_len - (last - 1) * BLOCK_N, BLOCK_N)
        chunk, start = next_chunk, next_start
        query_len, context_len, first_row = next_len, next_context, next_row
        next_chunk, next_start = later_chunk, later_start
    if count > 0:
        _end_last(
            out, shrink, total, weights, count, (done_row, done_left, done_head, done_tokens), values, value_pieces,
            v_full, out_ptr, GROUP, NUM_HEADS, BLOCK_SIZE,
        )  # fmt: skip


@gluon.jit
def _two_barriers(arrivals: gl.constexpr):
    found = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(2):
        mbarrier.init(found.index(index), count=arrivals)
    return found


@gluon.jit(do_not_specialize=["k_row", "v_row", "num_tiles", "first_row", "table_stride"])
def _long_prefill_kernel(
    q_ptr, pages, k_row, v_row, out_ptr, tables_ptr, context_lens_ptr, query_lens_ptr, query_starts_ptr,
    tile_chunks_ptr, tile_starts_ptr, num_tiles, first_row, scale_log2, q_row_stride, table_stride,
    NUM_HEADS: gl.constexpr, KV_HEADS: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_SIZE: gl.constexpr,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    STRIPS: gl.constexpr = HEAD_DIM // COLUMNS
    PIECES: gl.constexpr = 2 * STRIPS * (BLOCK_N // BLOCK_SIZE)
    SHARED: gl.constexpr = _SHARED
    dtype: gl.constexpr = q_ptr.dtype.element_ty
    # Each twice: one is filled while the other is worked on. Pieces are what is copied at once.
    query_pieces = gl.allocate_shared_memory(
        dtype, [2 * STRIPS * (BLOCK_M // QUERY_ROWS), QUERY_ROWS, COLUMNS], SHARED
    )
    key_pieces = gl.allocate_shared_memory(dtype, [PIECES, BLOCK_SIZE, COLUMNS], SHARED)
    value_pieces = gl.allocate_shared_memory(dtype, [PIECES, BLOCK_SIZE, COLUMNS], SHARED)
    queries = query_pieces._reinterpret(dtype, [2, BLOCK_M, HEAD_DIM], SHARED)
    keys = key_pieces._reinterpret(dtype, [2, BLOCK_N, HEAD_DIM], SHARED)
    values = value_pieces._reinterpret(dtype, [2, BLOCK_N, HEAD_DIM], SHARED)
    # Full: every lane of the warp that copies queries arrives; of tiles the copy engine counts the bytes.
    q_full, k_full, v_full = _two_barriers(32), _two_barriers(1), _two_barriers(1)
    # Empty: both groups arrive.
    q_empty, k_empty, v_empty = _two_barriers(2), _two_barriers(2), _two_barriers(2)
    turns = _two_barriers(1)
    fence_async_shared()
    pdl.wait(PDL)
    barriers = (q_full, q_empty, k_full, k_empty, v_full, v_empty, turns)
    work = (
        context_lens_ptr, query_lens_ptr, query_starts_ptr, tile_chunks_ptr, tile_starts_ptr, num_tiles, first_row,
    )  # fmt: skip
    tables = (tables_ptr, table_stride)
    gl.warp_specialize(
        [
            (_attend, (queries, keys, values, value_pieces, barriers, work, out_ptr, scale_log2, gl.constexpr(0),
                       NUM_HEADS, BLOCK_SIZE)),
            (_attend, (queries, keys, values, value_pieces, barriers, work, out_ptr, scale_log2, gl.constexpr(1),
                       NUM_HEADS, BLOCK_SIZE)),
            (fetch_tokens, (key_pieces, k_full, k_empty, pages, k_row, tables, work, NUM_HEADS, KV_HEADS, BLOCK_SIZE,
                            BLOCK_M, BLOCK_N, STRIPS)),
            (fetch_tokens, (value_pieces, v_full, v_empty, pages, v_row, tables, work, NUM_HEADS, KV_HEADS,
                            BLOCK_SIZE, BLOCK_M, BLOCK_N, STRIPS)),
            (fetch_queries, (query_pieces, q_full, q_empty, q_ptr, q_row_stride, work, NUM_HEADS, BLOCK_M, STRIPS)),
        ],
        [4, 1, 1, 1], [_WORK_REGISTERS, _FETCH_REGISTERS, _FETCH_REGISTERS, _FETCH_REGISTERS],
    )  # fmt: skip


class _Memory(NamedTuple):
    """As much of a tensor as a descriptor needs; it keeps no memory from being freed."""

    address: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        return self.address


class Pages(NamedTuple):
    """Both caches to the copy engine: one tensor of rows of d elements, from the first row of the one that lies lower
    in memory to the last of the other. A descriptor is what costs most of a launch, so it is one for both."""

    rows: TensorDescriptor
    k_row: int
    v_row: int


@functools.lru_cache(maxsize=1024)
def pages_at(k_address: int, v_address: int, shape: torch.Size, dtype: torch.dtype) -> Pages | None:
    """Of contiguous caches [num_blocks, kv_heads, block_size, d]; None where their rows cannot be counted as one's."""
    num_blocks, kv_heads, block_size, head_dim = shape
    row_bytes = head_dim * dtype.itemsize
    lower = min(k_address, v_address)
    k_row, v_row = (k_address - lower) // row_bytes, (v_address - lower) // row_bytes
    num_rows = max(k_row, v_row) + num_blocks * kv_heads * block_size
    if (k_address - v_address) % row_bytes or lower % 16 or num_rows >= NO_PAGE.value:
        return None
    rows = TensorDescriptor(
        _Memory(lower, dtype), [num_rows, head_dim], [head_dim, 1], [block_size, COLUMNS.value], _SHARED
    )
    return Pages(rows, k_row, v_row)


@functools.cache
def _num_programs(device: torch.device) -> int:
    """A program per multiprocessor; 0 where the kernel does not run."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] != 9:
        return 0
    return torch.cuda.get_device_properties(device).multi_processor_count


def pages_for(q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor) -> Pages | None:
    """The caches as `long_prefill_attention` needs them; None where it does not fit q, the caches or the device."""
    if _num_programs(q.device) == 0 or q.dtype not in (torch.bfloat16, torch.float16):
        return None
    block_size, head_dim = k_cache.shape[2:]
    # Heads of 64 are right in the emulation, but have not run on a GPU yet.
    if head_dim != 128 or block_size not in (16, 32, 64, 128) or q.stride(0) % 8 or q.data_ptr() % 16:
        return None
    for cache in (k_cache, v_cache):
        if cache.dtype != q.dtype or cache.shape != k_cache.shape or not cache.is_contiguous():
            return None
    return pages_at(k_cache.data_ptr(), v_cache.data_ptr(), k_cache.shape, k_cache.dtype)


def long_prefill_attention(
    q: torch.Tensor,
    pages: Pages,
    kv_heads: int,
    block_size: int,
    plan: AttentionPlan,
    chunks: Chunks,
    out: torch.Tensor,
    scale: float,
    *,
    num_programs: int = 0,
) -> None:
    """Attention of the chunks of a batch into their places of out [queries, heads, d]."""
    num_heads, head_dim = q.shape[1:]
    num_tiles = len(chunks.tile_chunks)
    grid = (min(num_programs or _num_programs(q.device), num_tiles * num_heads),)
    _long_prefill_kernel[grid](
        q, *pages, out, plan.block_tables, plan.context_lens, chunks.query_lens, chunks.query_starts,
        chunks.tile_chunks, chunks.tile_starts, num_tiles, plan.num_decoding, scale * _LOG2_E, q.stride(0),
        plan.block_tables.stride(0),
        NUM_HEADS=num_heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK_SIZE=block_size, BLOCK_M=QUERY_TILE,
        BLOCK_N=_BLOCK_N, num_warps=4, **pdl.options(),
    )  # fmt: skip
