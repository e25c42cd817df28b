# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: what decoding rows share, read once for a group of them; their own parts and the merge are `decode.py`'s.

A program does one split of a group's tokens for one KV head, with the query heads of all the group's rows in one tile.
"""

import torch
import triton
import triton.language as tl

from kernels import pdl
from kernels.kv_scales import KvScales
from kernels.paged_attention import SharedWork
from kernels.paged_attention.decode import LOG2_E, attend_item, nothing_attended
from kernels.paged_attention.pages import widened
from kernels.paged_attention.plan import SPLIT_TILE, split_span


@triton.jit
def _shared_kernel(
    q_ptr, k_ptr, v_ptr, tables_ptr, context_lens_ptr, lens_ptr, members_ptr, part_out_ptr, part_max_ptr, part_sum_ptr,
    scale_log2, q_row_stride, table_stride, k_block_stride, k_head_stride, k_slot_stride, v_block_stride, v_head_stride,
    v_slot_stride, k_scales_ptr, v_scales_ptr, NUM_HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    GROUP_BLOCK: tl.constexpr, MEMBERS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, ONE_BLOCK: tl.constexpr, STAGES: tl.constexpr, SPLITS: tl.constexpr,
    HAS_SCALES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    head, split = tl.program_id(0), tl.program_id(1)
    members_ptr += tl.program_id(2) * MEMBERS
    GROUP: tl.constexpr = NUM_HEADS // KV_HEADS
    places = tl.arange(0, MEMBERS * GROUP_BLOCK)
    slots = places // GROUP_BLOCK
    rows = tl.load(members_ptr + slots)
    lens = tl.load(lens_ptr + rows, mask=rows >= 0, other=0)
    # A row that is done has no context, and no table either.
    takes_part = lens < tl.load(context_lens_ptr + rows, mask=rows >= 0, other=0)
    length = tl.max(tl.where(takes_part, lens, 0), axis=0)
    span, _ = split_span(length, SPLITS, TILE)
    start = split * span
    end = tl.minimum(start + span, length)
    pdl.wait(PDL)
    if start < end:
        leader = tl.load(members_ptr + tl.min(tl.where(takes_part, slots, MEMBERS - 1), axis=0)).to(tl.int64)
        columns = tl.arange(0, DIM_PAD)
        heads = head * GROUP + places % GROUP_BLOCK
        is_query = takes_part & (places % GROUP_BLOCK < GROUP)
        mask = is_query[:, None] & (columns < HEAD_DIM)[None, :]
        wide_rows = rows.to(tl.int64)
        q_at = q_ptr + (wide_rows * q_row_stride + heads * HEAD_DIM)[:, None] + columns[None, :]
        q = tl.load(q_at, mask=mask, other=0.0)
        if HAS_SCALES:
            scale_log2 *= tl.load(k_scales_ptr + head)
            q = widened(q)
        out, largest, total = nothing_attended(MEMBERS * GROUP_BLOCK, DIM_PAD)
        out, largest, total = attend_item(
            out, largest, total, q, tables_ptr + leader * table_stride, k_ptr + head * k_head_stride,
            v_ptr + head * v_head_stride, start, end, 0, k_block_stride, k_slot_stride, v_block_stride,
            v_slot_stride, scale_log2, HEAD_DIM, DIM_PAD, BLOCK_SIZE, TILE, ONE_BLOCK, STAGES,
        )  # fmt: skip
        if HAS_SCALES:
            out *= tl.load(v_scales_ptr + head)
        at = (wide_rows * SPLITS + split) * NUM_HEADS + heads
        tl.store(part_out_ptr + at[:, None] * HEAD_DIM + columns[None, :], out, mask=mask)
        tl.store(part_max_ptr + at, largest, mask=is_query)
        tl.store(part_sum_ptr + at, total, mask=is_query)


def shared_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    work: SharedWork,
    scale: float,
    scales: KvScales | None,
) -> None:
    """Attention of the rows in groups over what they share, into the work's parts; floor: one read of that a group."""
    (num_heads, head_dim), (num_kv_heads, block_size) = q.shape[1:], k_cache.shape[1:3]
    lens, members = work.prefixes.lens, work.prefixes.members
    splits, dim_pad = work.partial_out.shape[1], triton.next_power_of_2(head_dim)
    # More than this, and the tile's output does not fit into the registers of four warps.
    is_wide = dim_pad * q.element_size() > 256
    _shared_kernel[(num_kv_heads, splits, len(members))](
        q, k_cache, v_cache, block_tables, context_lens, lens, members,
        work.partial_out, work.partial_max, work.partial_sum, scale * LOG2_E, q.stride(0), block_tables.stride(0),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        v_cache.stride(0), v_cache.stride(1), v_cache.stride(2), *(scales or (q, q)),
        NUM_HEADS=num_heads, KV_HEADS=num_kv_heads, GROUP_BLOCK=triton.next_power_of_2(num_heads // num_kv_heads),
        MEMBERS=members.shape[1], HEAD_DIM=head_dim, DIM_PAD=dim_pad, BLOCK_SIZE=block_size, TILE=SPLIT_TILE,
        ONE_BLOCK=block_size % SPLIT_TILE == 0, STAGES=2 if is_wide else 3, SPLITS=splits,
        HAS_SCALES=scales is not None, num_warps=8 if is_wide else 4, **pdl.options(),
    )  # fmt: skip
