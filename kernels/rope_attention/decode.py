# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: attention of rows that decode, whose own token never leaves the registers of the program that adds it.

Each program rotates its queries itself. The one with a row's last item rotates the new key too, writes key and value to
the cache for later steps, and attends to them after all others; so nothing in a launch waits for its own writes. An
item's first tile, which for few rows is most of it, is on its way before the kernel waits for the projection.
"""

import torch
import triton
import triton.language as tl

from kernels import pdl
from kernels.kv_scales import FP8_MAX, KvScales
from kernels.paged_attention import AttentionPlan, DecodeWork
from kernels.paged_attention.decode import (
    LOG2_E,
    attend_item,
    attend_tile,
    finish_item,
    launch_options,
    load_tile,
    nothing_attended,
    read_item,
)
from kernels.paged_attention.pages import tile_blocks, widened
from kernels.rope_attention import Rotation

_FP8_MAX = tl.constexpr(FP8_MAX)


@triton.jit
def _partners(columns, HEAD_DIM: tl.constexpr):
    """The column with which each is turned."""
    return tl.where(columns < HEAD_DIM // 2, columns + HEAD_DIM // 2, columns - HEAD_DIM // 2)


@triton.jit
def _new_head(ptr, columns, mask, HEAD_DIM: tl.constexpr):
    """A head's numbers, and the same with the halves exchanged."""
    x = tl.load(ptr + columns, mask=mask, other=0.0)
    return x, tl.load(ptr + _partners(columns, HEAD_DIM), mask=mask, other=0.0)


@triton.jit
def _head_weights(ptr, columns, mask, HEAD_DIM: tl.constexpr, HAS_NORM: tl.constexpr):
    """Of a norm of heads, as `_new_head`; anything, if there is none."""
    weights, partner_weights = columns, columns
    if HAS_NORM:
        weights, partner_weights = _new_head(ptr, columns, mask, HEAD_DIM)
    return weights, partner_weights


@triton.jit
def _turned(
    x, partner, weight, partner_weight, cos, sin, eps, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    HAS_NORM: tl.constexpr,
):  # fmt: skip
    """Heads [n, DIM_PAD] rotated, given also with their halves exchanged; rounded wherever the reference rounds."""
    if HAS_NORM:
        wide = x.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / HEAD_DIM + eps)[:, None]
        partner_normed = (partner.to(tl.float32) * scale).to(x.dtype).to(tl.float32)
        partner = (partner_normed * partner_weight.to(tl.float32)[None, :]).to(x.dtype)
        x = ((wide * scale).to(x.dtype).to(tl.float32) * weight.to(tl.float32)[None, :]).to(x.dtype)
    sign = tl.where(tl.arange(0, DIM_PAD) < HEAD_DIM // 2, -1.0, 1.0)
    straight = (x.to(tl.float32) * cos[None, :]).to(x.dtype).to(tl.float32)
    across = (partner.to(tl.float32) * sin[None, :]).to(x.dtype).to(tl.float32)
    return (straight + sign[None, :] * across).to(x.dtype)


@triton.jit
def _kept(x, ptr, scale_ptr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, HAS_SCALES: tl.constexpr):
    """Write a new key or value [1, DIM_PAD] to the cache; what later steps will read there, but for its scale."""
    columns = tl.arange(0, DIM_PAD)[None, :]
    if HAS_SCALES:
        x = tl.clamp(x.to(tl.float32) / tl.load(scale_ptr), -_FP8_MAX, _FP8_MAX).to(ptr.dtype.element_ty)
    tl.store(ptr + columns, x, mask=columns < HEAD_DIM)
    return x.to(tl.float32)


@triton.jit
def _add_token(out, largest, total, q, key, value, scale_log2):
    """Attend to one more token [1, DIM_PAD], as `attend_tile` does to many."""
    scores = tl.sum(q.to(tl.float32) * key, axis=1) * scale_log2
    new_largest = tl.maximum(largest, scores)
    weights = tl.exp2(scores - new_largest)
    shrink = tl.exp2(largest - new_largest)
    out = out * shrink[:, None] + weights.to(q.dtype).to(tl.float32)[:, None] * value
    return out, new_largest, total * shrink + weights


@triton.jit
def _attend_cached(
    q, seen, keys, values, table_ptr, k_ptr, v_ptr, start, end, seen_from, k_block_stride, k_slot_stride,
    v_block_stride, v_slot_stride, scale_log2, GROUP_PAD: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, ONE_BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Attend to an item's first tile, which is there, and to those that follow."""
    out, largest, total = nothing_attended(GROUP_PAD, DIM_PAD)
    out, largest, total = attend_tile(out, largest, total, q, keys, values, seen, scale_log2)
    if start + TILE < end:  # a loop without turns takes its time, too
        out, largest, total = attend_item(
            out, largest, total, q, table_ptr, k_ptr, v_ptr, start + TILE, end, seen_from, k_block_stride,
            k_slot_stride, v_block_stride, v_slot_stride, scale_log2, HEAD_DIM, DIM_PAD, BLOCK_SIZE, TILE, ONE_BLOCK,
            STAGES,
        )  # fmt: skip
    return out, largest, total


@triton.jit
def _rotation(cos_sin_ptr, position, columns, mask, HEAD_DIM: tl.constexpr, DTYPE: tl.constexpr):
    """Cosine and sine for each column, float32 rounded to DTYPE."""
    at = cos_sin_ptr + position.to(tl.int64) * HEAD_DIM + columns % (HEAD_DIM // 2)
    cos = tl.load(at, mask=mask, other=0.0).to(DTYPE).to(tl.float32)
    return cos, tl.load(at + HEAD_DIM // 2, mask=mask, other=0.0).to(DTYPE).to(tl.float32)


@triton.jit
def _locate(items_ptr, context_lens_ptr, item, num_places, WINDOW: tl.constexpr, TILE: tl.constexpr):
    """An item as `read_item` gives it, of cached tokens alone; whether it is any, the place of its row's own token, the
    first token that this sees, and whether it is the item's to add."""
    row, start, end, first_item, num_items = read_item(items_ptr, item, num_places)
    has_work = start < end
    position = tl.load(context_lens_ptr + row, mask=has_work, other=1) - 1
    is_last = end == position + 1
    seen_from = 0
    if WINDOW > 0:
        seen_from = tl.maximum(position + 1 - WINDOW, 0)
        start = tl.maximum(start, seen_from // TILE * TILE)
    return (
        row,
        start,
        tl.minimum(end, position),
        first_item,
        num_items,
        has_work,
        position,
        seen_from,
        is_last,
    )


@triton.jit
def _new_token(k_ptr, v_ptr, columns, mask, HEAD_DIM: tl.constexpr):
    """A key, the same with its halves exchanged, and a value: asked for long before they are needed."""
    key, partner = _new_head(k_ptr, columns, mask, HEAD_DIM)
    return key, partner, tl.load(v_ptr + columns, mask=mask, other=0.0)


@triton.jit
def _rope_decode_kernel(
    q_ptr, k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, out_ptr, tables_ptr, context_lens_ptr, items_ptr, arrived_ptr,
    part_out_ptr, part_max_ptr, part_sum_ptr, cos_sin_ptr, q_weight_ptr, k_weight_ptr, k_scales_ptr, v_scales_ptr, eps,
    scale_log2, q_row_stride, q_head_stride, k_row_stride, k_new_head_stride, v_row_stride, v_new_head_stride,
    table_stride, k_block_stride, k_head_stride, k_slot_stride, v_block_stride, v_head_stride, v_slot_stride,
    WINDOW: tl.constexpr, NUM_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP_PAD: tl.constexpr,
    GROUP_BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr, ONE_BLOCK: tl.constexpr, STAGES: tl.constexpr, HAS_NORM: tl.constexpr,
    HAS_SCALES: tl.constexpr, AT_ONCE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    item, head = tl.program_id(0), tl.program_id(1)
    GROUP: tl.constexpr = NUM_HEADS // KV_HEADS
    columns = tl.arange(0, DIM_PAD)
    in_head = columns < HEAD_DIM
    row, start, end, first_item, num_items, has_work, position, seen_from, is_last = _locate(
        items_ptr, context_lens_ptr, item, tl.num_programs(0), WINDOW, TILE
    )
    table_ptr = tables_ptr + row * table_stride
    k_head_ptr, v_head_ptr = k_cache_ptr + head * k_head_stride, v_cache_ptr + head * v_head_stride
    blocks = tile_blocks(table_ptr, start, end, BLOCK_SIZE, TILE, ONE_BLOCK)
    seen, keys, values = load_tile(
        k_head_ptr, v_head_ptr, blocks, start, end, seen_from, k_block_stride, k_slot_stride, v_block_stride,
        v_slot_stride, HEAD_DIM, DIM_PAD, BLOCK_SIZE, TILE, ONE_BLOCK,
    )  # fmt: skip
    cos, sin = _rotation(cos_sin_ptr, position, columns, in_head & has_work, HEAD_DIM, q_ptr.dtype.element_ty)
    new_block = tl.load(table_ptr + position // BLOCK_SIZE, mask=has_work & is_last, other=0).to(tl.int64)
    q_weight, q_swapped = _head_weights(q_weight_ptr, columns, in_head, HEAD_DIM, HAS_NORM)
    k_weight, k_swapped = _head_weights(k_weight_ptr, columns, in_head, HEAD_DIM, HAS_NORM)
    pdl.wait(PDL)
    if has_work:
        members = tl.arange(0, GROUP_PAD)[:, None]
        at = q_ptr + row * q_row_stride + (head * GROUP + members) * q_head_stride
        q, q_partner = _new_head(at, columns[None, :], (members < GROUP) & in_head[None, :], HEAD_DIM)
        new_k_ptr, new_v_ptr = k_ptr + row * k_row_stride, v_ptr + row * v_row_stride
        key, key_partner, value = _new_token(
            new_k_ptr + head * k_new_head_stride, new_v_ptr + head * v_new_head_stride, columns[None, :],
            (in_head & is_last)[None, :], HEAD_DIM,
        )  # fmt: skip
        q = _turned(q, q_partner, q_weight, q_swapped, cos, sin, eps, HEAD_DIM, DIM_PAD, HAS_NORM)
        if HAS_SCALES:
            scale_log2 *= tl.load(k_scales_ptr + head)
            q = widened(q)
        out, largest, total = _attend_cached(
            q, seen, keys, values, table_ptr, k_head_ptr, v_head_ptr, start, end, seen_from, k_block_stride,
            k_slot_stride, v_block_stride, v_slot_stride, scale_log2, GROUP_PAD, HEAD_DIM, DIM_PAD, BLOCK_SIZE, TILE,
            ONE_BLOCK, STAGES,
        )  # fmt: skip
        if is_last:
            k_at = k_head_ptr + new_block * k_block_stride + position % BLOCK_SIZE * k_slot_stride
            v_at = v_head_ptr + new_block * v_block_stride + position % BLOCK_SIZE * v_slot_stride
            key = _turned(key, key_partner, k_weight, k_swapped, cos, sin, eps, HEAD_DIM, DIM_PAD, HAS_NORM)
            kept_key = _kept(key, k_at, k_scales_ptr + head, HEAD_DIM, DIM_PAD, HAS_SCALES)
            kept_value = _kept(value, v_at, v_scales_ptr + head, HEAD_DIM, DIM_PAD, HAS_SCALES)
            out, largest, total = _add_token(out, largest, total, q, kept_key, kept_value, scale_log2)
        if HAS_SCALES:
            out *= tl.load(v_scales_ptr + head)
        finish_item(
            out, largest, total, out_ptr, arrived_ptr, part_out_ptr, part_max_ptr, part_sum_ptr, item, row, head,
            first_item, num_items, NUM_HEADS, KV_HEADS, GROUP_PAD, GROUP_BLOCK, HEAD_DIM, DIM_PAD, AT_ONCE,
        )  # fmt: skip


def rope_decode_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotation: Rotation,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: AttentionPlan,
    work: DecodeWork,
    scale: float,
    window: int | None,
    scales: KvScales | None,
) -> torch.Tensor:
    """Attention of a batch in which every row decodes; positions and slots are those of the plan's contexts.

    The plan and the rows' cached tokens are read before the kernels ahead of this one are done, so they must have been
    written before the last full launch (`kernels.pdl`).
    """
    cos_sin, _, _, q_weight, k_weight, eps = rotation
    if any(tensor.stride(-1) != 1 for tensor in (q, k, v, k_cache, v_cache)) or not cos_sin.is_contiguous():
        raise ValueError("the elements of a head must be adjacent")
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    has_norm = q_weight is not None and k_weight is not None
    _rope_decode_kernel[(work.items.shape[1], k_cache.shape[1])](
        q, k, v, k_cache, v_cache, out, plan.block_tables, plan.context_lens, work.items, work.arrived,
        work.partial_out, work.partial_max, work.partial_sum, cos_sin, q_weight if has_norm else q,
        k_weight if has_norm else q, *(scales or (q, q)), eps, scale * LOG2_E,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1), plan.block_tables.stride(0),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        v_cache.stride(0), v_cache.stride(1), v_cache.stride(2),
        WINDOW=window or 0, HAS_NORM=has_norm, **launch_options(q, k_cache, work, scales), **pdl.options(),
    )  # fmt: skip
    return out
