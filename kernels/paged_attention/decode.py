# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: attention of one query per row, split over the KV (Dao et al., "Flash-Decoding", 2023).

A program does an item of the plan, or those of a span, for one KV head and all query heads that share it. The program
that finishes a row's last item merges the row's parts in the same launch, so that no other kernel follows.
"""

import torch
import triton
import triton.language as tl

from kernels import pdl
from kernels.kv_scales import KvScales
from kernels.paged_attention import DecodeWork
from kernels.paged_attention.pages import fetch_tokens_ahead, tile_blocks, token_offsets, widened
from kernels.paged_attention.plan import SPLIT_TILE, own_start, split_span

LOG2_E = 1.4426950408889634
# More would set the registers of every program, and with them how many fit: 228 against 152 a thread for groups of 8.
_MERGED_PER_THREAD = 64
_MOST_AT_ONCE = 16
_QUARTER_REGISTERS = 512
"""For each thread of one warp: a multiprocessor's 65,536 are in quarters, and a warp has its registers in one."""


@triton.jit
def read_item(items_ptr, item, num_places):
    """An item's row, first token and the one after its last, the row's first item, and how many the row has; where no
    token is left the others mean nothing."""
    start = tl.load(items_ptr + num_places + item)
    end = tl.load(items_ptr + 2 * num_places + item)
    # Waiting for `end` before asking for these would take as long again.
    row = tl.load(items_ptr + item).to(tl.int64)
    first_item = tl.load(items_ptr + 3 * num_places + item).to(tl.int64)
    num_items = tl.load(items_ptr + 4 * num_places + item)
    return row, start, end, first_item, num_items


@triton.jit
def nothing_attended(QUERIES: tl.constexpr, DIM_PAD: tl.constexpr):
    """What `attend_tile` adds to: unnormalised output [QUERIES, DIM_PAD], largest scores and sums of weights."""
    out = tl.zeros([QUERIES, DIM_PAD], tl.float32)
    return out, tl.full([QUERIES], float("-inf"), tl.float32), tl.zeros([QUERIES], tl.float32)


@triton.jit
def attend_tile(out, largest, total, q, keys, values, seen, scale_log2):
    """Attend to those of a tile's tokens that are `seen`; keys [DIM_PAD, tile], values [tile, DIM_PAD]."""
    scores = tl.dot(q, keys.to(q.dtype), input_precision="ieee") * scale_log2
    scores = tl.where(seen[None, :], scores, float("-inf"))
    new_largest = tl.maximum(largest, tl.max(scores, axis=1))
    # Nothing seen so far: any finite number will do.
    shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
    weights = tl.exp2(scores - shift[:, None])
    shrink = tl.exp2(largest - shift)
    out = tl.dot(weights.to(q.dtype), values.to(q.dtype), out * shrink[:, None], input_precision="ieee")
    return out, new_largest, total * shrink + tl.sum(weights, axis=1)


@triton.jit
def load_tile(
    k_ptr, v_ptr, blocks, start, end, seen_from, k_block_stride, k_slot_stride, v_block_stride, v_slot_stride,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """Which tokens from `start` are seen, and their keys [DIM_PAD, TILE] and values [TILE, DIM_PAD]."""
    tokens = start + tl.arange(0, TILE)
    seen = (tokens < end) & (tokens >= seen_from)
    columns = tl.arange(0, DIM_PAD)
    in_head = columns < HEAD_DIM
    k_offsets = token_offsets(blocks, start, k_block_stride, k_slot_stride, BLOCK_SIZE, TILE, ONE_BLOCK)
    v_offsets = token_offsets(blocks, start, v_block_stride, v_slot_stride, BLOCK_SIZE, TILE, ONE_BLOCK)
    k_at, k_mask = k_ptr + k_offsets[None, :] + columns[:, None], seen[None, :] & in_head[:, None]
    v_at, v_mask = v_ptr + v_offsets[:, None] + columns[None, :], seen[:, None] & in_head[None, :]
    return seen, tl.load(k_at, mask=k_mask, other=0.0), tl.load(v_at, mask=v_mask, other=0.0)


@triton.jit
def attend_item(
    out, largest, total, q, table_ptr, k_ptr, v_ptr, start, end, seen_from, k_block_stride, k_slot_stride,
    v_block_stride, v_slot_stride, scale_log2, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, ONE_BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Attend to tokens [start, end), as `attend_tile` does to a tile of them."""
    blocks = tile_blocks(table_ptr, start, end, BLOCK_SIZE, TILE, ONE_BLOCK)
    for tile_start in tl.range(start, end, TILE, num_stages=STAGES):
        tile = blocks
        blocks = tile_blocks(table_ptr, tile_start + TILE, end, BLOCK_SIZE, TILE, ONE_BLOCK)
        seen, keys, values = load_tile(
            k_ptr, v_ptr, tile, tile_start, end, seen_from, k_block_stride, k_slot_stride, v_block_stride,
            v_slot_stride, HEAD_DIM, DIM_PAD, BLOCK_SIZE, TILE, ONE_BLOCK,
        )  # fmt: skip
        out, largest, total = attend_tile(out, largest, total, q, keys, values, seen, scale_log2)
    return out, largest, total


@triton.jit
def _add_parts(
    out, largest, total, part_out_ptr, part_max_ptr, part_sum_ptr, first_part, num_parts, heads, in_group,
    NUM_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Parts that follow each other, several at once, past the first-level cache."""
    columns = tl.arange(0, DIM_PAD)
    for number in range(0, num_parts, AT_ONCE):
        parts = number + tl.arange(0, AT_ONCE)
        places = (first_part + parts)[:, None] * NUM_HEADS + heads[None, :]
        mask = (parts < num_parts)[:, None] & in_group[None, :]
        maxima = tl.load(part_max_ptr + places, mask=mask, other=float("-inf"), cache_modifier=".cg")
        sums = tl.load(part_sum_ptr + places, mask=mask, other=0.0, cache_modifier=".cg")
        pieces = tl.load(
            part_out_ptr + places[:, :, None] * HEAD_DIM + columns[None, None, :],
            mask=mask[:, :, None] & (columns < HEAD_DIM)[None, None, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        new_largest = tl.maximum(largest, tl.max(maxima, axis=0))
        shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        factors = tl.exp2(maxima - shift[None, :])
        shrink = tl.exp2(largest - shift)
        total = total * shrink + tl.sum(sums * factors, axis=0)
        out = out * shrink[:, None] + tl.sum(pieces * factors[:, :, None], axis=0)
        largest = new_largest
    return out, largest, total


@triton.jit
def _merge(
    out_ptr, part_out_ptr, part_max_ptr, part_sum_ptr, first_item, num_items, shared_out_ptr, shared_max_ptr,
    shared_sum_ptr, first_shared, num_shared, head, NUM_HEADS: tl.constexpr, GROUP: tl.constexpr,
    GROUP_BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, AT_ONCE: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """All parts of one row and KV head."""
    members = tl.arange(0, GROUP_BLOCK)
    columns = tl.arange(0, DIM_PAD)
    in_group = members < GROUP
    heads = head * GROUP + members
    largest = tl.full([GROUP_BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_BLOCK], tl.float32)
    out = tl.zeros([GROUP_BLOCK, DIM_PAD], tl.float32)
    out, largest, total = _add_parts(
        out, largest, total, part_out_ptr, part_max_ptr, part_sum_ptr, first_item, num_items, heads, in_group,
        NUM_HEADS, HEAD_DIM, DIM_PAD, AT_ONCE,
    )  # fmt: skip
    if SPLITS > 0:
        out, largest, total = _add_parts(
            out, largest, total, shared_out_ptr, shared_max_ptr, shared_sum_ptr, first_shared, num_shared, heads,
            in_group, NUM_HEADS, HEAD_DIM, DIM_PAD, AT_ONCE,
        )  # fmt: skip
    at = out_ptr + heads[:, None] * HEAD_DIM + columns[None, :]
    # Of heads that fill the group up there is nothing.
    total = tl.where(total == 0.0, 1.0, total)
    result = (out / total[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(at, result, mask=in_group[:, None] & (columns < HEAD_DIM)[None, :])


@triton.jit
def finish_item(
    out, largest, total, out_ptr, arrived_ptr, part_out_ptr, part_max_ptr, part_sum_ptr, item, row, head,
    first_item, num_items, NUM_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP_PAD: tl.constexpr,
    GROUP_BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, AT_ONCE: tl.constexpr,
    SPLITS: tl.constexpr = 0, num_shared=0, shared_out_ptr=None, shared_max_ptr=None, shared_sum_ptr=None,
):  # fmt: skip
    """Write what came of an item: the result, where it is its row's only part, or a part; the last item merges all.

    With SPLITS, the row has `num_shared` parts more, which are there already.
    """
    GROUP: tl.constexpr = NUM_HEADS // KV_HEADS
    members = tl.arange(0, GROUP_PAD)
    columns = tl.arange(0, DIM_PAD)
    heads = head * GROUP + members
    mask = (members < GROUP)[:, None] & (columns < HEAD_DIM)[None, :]
    row_out_ptr = out_ptr + row * (NUM_HEADS * HEAD_DIM)
    if num_items + num_shared == 1:
        at = row_out_ptr + heads[:, None] * HEAD_DIM + columns[None, :]
        tl.store(at, (out / total[:, None]).to(out_ptr.dtype.element_ty), mask=mask)
    else:
        places = item.to(tl.int64) * NUM_HEADS + heads
        tl.store(part_out_ptr + places[:, None] * HEAD_DIM + columns[None, :], out, mask=mask)
        tl.store(part_max_ptr + places, largest, mask=members < GROUP)
        tl.store(part_sum_ptr + places, total, mask=members < GROUP)
        # All threads' stores come before the one that says so; whoever sees all of a row's merges them.
        tl.debug_barrier()
        arrived_at = arrived_ptr + row * KV_HEADS + head
        if tl.atomic_add(arrived_at, 1, sem="acq_rel") == num_items - 1:
            tl.store(arrived_at, 0)
            _merge(
                row_out_ptr, part_out_ptr, part_max_ptr, part_sum_ptr, first_item, num_items, shared_out_ptr,
                shared_max_ptr, shared_sum_ptr, row * SPLITS, num_shared, head,
                NUM_HEADS, GROUP, GROUP_BLOCK, HEAD_DIM, DIM_PAD, AT_ONCE, SPLITS,
            )  # fmt: skip


@triton.jit
def _query_places(
    head, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr
):
    """Where in a row its queries [GROUP_PAD, DIM_PAD] of one KV head lie, and which of these there are."""
    members = tl.arange(0, GROUP_PAD)[:, None]
    columns = tl.arange(0, DIM_PAD)[None, :]
    return (head * GROUP + members) * HEAD_DIM + columns, (members < GROUP) & (columns < HEAD_DIM)


@triton.jit(do_not_specialize=["num_places"])
def _decode_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, tables_ptr, context_lens_ptr, items_ptr, spans_ptr, arrived_ptr, part_out_ptr,
    part_max_ptr, part_sum_ptr, scale_log2, num_places, q_row_stride, table_stride, k_block_stride, k_head_stride,
    k_slot_stride, v_block_stride, v_head_stride, v_slot_stride, k_scales_ptr, v_scales_ptr, shared_lens_ptr,
    shared_out_ptr, shared_max_ptr, shared_sum_ptr,
    WINDOW: tl.constexpr, NUM_HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP_PAD: tl.constexpr,
    GROUP_BLOCK: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr, ONE_BLOCK: tl.constexpr, STAGES: tl.constexpr, HAS_SCALES: tl.constexpr, AT_ONCE: tl.constexpr,
    IN_SHARES: tl.constexpr, AHEAD: tl.constexpr, SPLITS: tl.constexpr, SPLIT_TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    # The heads of an item run side by side: what they read lies side by side.
    head = tl.program_id(0)
    first, count = tl.program_id(1), 1
    GROUP: tl.constexpr = NUM_HEADS // KV_HEADS
    # Plan and block tables are of before the last full launch (`kernels.pdl`).
    if IN_SHARES:
        count = tl.load(spans_ptr + tl.num_programs(1) + first)
        first = tl.load(spans_ptr + first)
        count -= first
    row, start, end, first_item, num_items = read_item(items_ptr, first, num_places)
    if AHEAD > 0:
        fetch_tokens_ahead(
            tables_ptr + row * table_stride, k_ptr + head * k_head_stride, v_ptr + head * v_head_stride, start, end,
            k_block_stride, v_block_stride, HEAD_DIM, BLOCK_SIZE, AHEAD,
        )  # fmt: skip
    pdl.wait(PDL)
    if HAS_SCALES:
        scale_log2 *= tl.load(k_scales_ptr + head)
    places, mask = _query_places(head, GROUP, GROUP_PAD, HEAD_DIM, DIM_PAD)
    for number in range(count):
        item = first + number
        if start < end:
            seen_from = 0
            if WINDOW > 0:
                seen_from = tl.maximum(tl.load(context_lens_ptr + row) - WINDOW, 0)
                start = tl.maximum(start, seen_from // TILE * TILE)
            q = tl.load(q_ptr + row * q_row_stride + places, mask=mask, other=0.0)
            if HAS_SCALES:
                q = widened(q)
            out, largest, total = nothing_attended(GROUP_PAD, DIM_PAD)
            out, largest, total = attend_item(
                out, largest, total, q, tables_ptr + row * table_stride, k_ptr + head * k_head_stride,
                v_ptr + head * v_head_stride, start, end, seen_from, k_block_stride, k_slot_stride, v_block_stride,
                v_slot_stride, scale_log2, HEAD_DIM, DIM_PAD, BLOCK_SIZE, TILE, ONE_BLOCK, STAGES,
            )  # fmt: skip
            if HAS_SCALES:
                out *= tl.load(v_scales_ptr + head)
            num_shared = 0
            if SPLITS > 0:
                shared = own_start(tl.load(shared_lens_ptr + row), tl.load(context_lens_ptr + row))
                _, num_shared = split_span(shared, SPLITS, SPLIT_TILE)
            finish_item(
                out, largest, total, out_ptr, arrived_ptr, part_out_ptr, part_max_ptr, part_sum_ptr, item, row, head,
                first_item, num_items, NUM_HEADS, KV_HEADS, GROUP_PAD, GROUP_BLOCK, HEAD_DIM, DIM_PAD, AT_ONCE,
                SPLITS, num_shared, shared_out_ptr, shared_max_ptr, shared_sum_ptr,
            )  # fmt: skip
        if IN_SHARES:
            next_item = tl.minimum(item + 1, num_places - 1)
            row, start, end, first_item, num_items = read_item(items_ptr, next_item, num_places)


def decode_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    work: DecodeWork,
    out: torch.Tensor,
    scale: float,
    window: int | None,
    scales: KvScales | None = None,
) -> None:
    """Attention of the first rows of a batch, those that `work` is of, into out [at least rows, heads, d].

    A program holds num_stages - 1 tiles of keys and of values. Between planning and this comes a full launch
    (`kernels.pdl`): the plan is read before the kernels ahead are done.
    """
    shared, spans = work.shared, work.spans
    options, early = launch_options(q, k_cache, work, scales), pdl.options()
    # Asked for at once an item's first tile is there sooner; where all programs begin together nothing is gained.
    is_dense = k_cache.is_contiguous() and v_cache.is_contiguous() and k_cache.shape[2] % 16 == 0
    goes_on = work.sizes.order == "longest first" and window is None
    ahead = options["TILE"] if early["PDL"] and is_dense and goes_on else 0
    parts, splits = (q,) * 4, 0
    if shared is not None:
        parts = (shared.prefixes.lens, shared.partial_out, shared.partial_max, shared.partial_sum)
        splits = shared.partial_out.shape[1]
    _decode_kernel[(k_cache.shape[1], (work.items if spans is None else spans).shape[1])](
        q, k_cache, v_cache, out, block_tables, context_lens, work.items, work.items if spans is None else spans,
        work.arrived, work.partial_out, work.partial_max, work.partial_sum,
        scale * LOG2_E, work.items.shape[1], q.stride(0), block_tables.stride(0),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        v_cache.stride(0), v_cache.stride(1), v_cache.stride(2), *(scales or (q, q)), *parts,
        WINDOW=window or 0, IN_SHARES=spans is not None, AHEAD=ahead, SPLITS=splits, SPLIT_TILE=SPLIT_TILE,
        **options, **early,
    )  # fmt: skip


def launch_options(
    q: torch.Tensor, k_cache: torch.Tensor, work: DecodeWork, scales: KvScales | None
) -> dict[str, int]:
    """Constants of a program that attends an item."""
    (num_heads, head_dim), (num_kv_heads, block_size) = q.shape[1:], k_cache.shape[1:3]
    dim_pad = triton.next_power_of_2(head_dim)
    tile, num_warps, num_stages, programs_per_sm, order = work.sizes
    limit = {}
    if dim_pad * q.element_size() > 256:
        # Two warps do not have the registers for wide heads, nor the shared memory the room for many tiles of them.
        num_warps, num_stages = 4, 2
    elif order != "as they come":
        # All programs of the plan are to run at once. Wide heads need more registers, and take turns.
        warps_per_quarter = triton.cdiv(programs_per_sm * num_warps, 4)
        limit["maxnreg"] = _QUARTER_REGISTERS // warps_per_quarter // 8 * 8
    group_block = triton.next_power_of_2(num_heads // num_kv_heads)
    at_once = max(1, min(_MOST_AT_ONCE, _MERGED_PER_THREAD * 32 * num_warps // (group_block * dim_pad)))
    return {
        "NUM_HEADS": num_heads, "KV_HEADS": num_kv_heads, "GROUP_PAD": max(16, group_block),
        "GROUP_BLOCK": group_block, "HEAD_DIM": head_dim, "DIM_PAD": dim_pad, "BLOCK_SIZE": block_size, "TILE": tile,
        "ONE_BLOCK": block_size % tile == 0, "STAGES": num_stages, "HAS_SCALES": scales is not None,
        "AT_ONCE": at_once, "num_warps": num_warps, **limit,
    }  # fmt: skip
