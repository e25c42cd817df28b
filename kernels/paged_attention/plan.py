# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: the work list of decode attention, planned by one program once per step.

A row's KV is cut into items of the same number of tiles, so few that the items of all heads come to about one per
place on the device where a program can run. A batch that fills the device with whole rows is not cut at all.
"""

import functools

import torch
import triton
import triton.language as tl

from kernels.paged_attention import DecodeWork

TILE = 64
"""KV tokens that a decode program loads at once."""
_PROGRAMS_PER_SM = 3
_INTERPRETED_SMS = 4


@triton.jit(do_not_specialize=["num_rows"])
def _plan_kernel(
    context_lens_ptr,
    item_rows_ptr,
    item_tiles_ptr,
    row_items_ptr,
    counts_ptr,
    arrived_ptr,
    num_rows,
    KV_HEADS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.arange(0, ROWS)
    mask = rows < num_rows
    context_lens = tl.load(context_lens_ptr + rows, mask=mask, other=0)
    tiles = (context_lens + TILE - 1) // TILE
    work = tl.sum(tiles, axis=0) * KV_HEADS
    per_item = tl.maximum((work + PROGRAMS - 1) // PROGRAMS, 1)
    num_items = (tiles + per_item - 1) // per_item
    ends = tl.cumsum(num_items, axis=0)
    firsts = ends - num_items
    tl.store(row_items_ptr + rows, firsts, mask=mask)
    tl.store(row_items_ptr + num_rows + rows, num_items, mask=mask)
    for number in range(tl.max(num_items, axis=0)):
        has_one = number < num_items
        tl.store(item_rows_ptr + firsts + number, rows, mask=has_one)
        tl.store(item_tiles_ptr + firsts + number, tl.zeros_like(rows) + number * per_item, mask=has_one)
    for head in tl.static_range(KV_HEADS):
        tl.store(arrived_ptr + rows * KV_HEADS + head, tl.zeros_like(rows), mask=mask)
    tl.store(counts_ptr, tl.sum(num_items, axis=0))
    tl.store(counts_ptr + 1, per_item)


def plan_decode(
    context_lens: torch.Tensor, num_rows: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> DecodeWork:
    """The work of the first `num_rows` rows, of which there is at least one."""
    device = context_lens.device
    programs = _PROGRAMS_PER_SM * _num_sms(device.index or 0 if device.type == "cuda" else -1)
    most_items = num_rows + triton.cdiv(programs, num_kv_heads)
    lists = torch.empty((2, most_items), dtype=torch.int32, device=device)
    row_items = torch.empty((2, num_rows), dtype=torch.int32, device=device)
    counts = torch.empty(2, dtype=torch.int32, device=device)
    arrived = torch.empty((num_rows, num_kv_heads), dtype=torch.int32, device=device)
    partial_out = torch.empty((most_items, num_heads, head_dim), dtype=torch.float32, device=device)
    partial_max, partial_sum = torch.empty((2, most_items, num_heads), dtype=torch.float32, device=device)
    _plan_kernel[(1,)](
        context_lens, lists[0], lists[1], row_items, counts, arrived, num_rows,
        KV_HEADS=num_kv_heads, PROGRAMS=programs, TILE=TILE, ROWS=triton.next_power_of_2(num_rows), num_warps=4,
    )  # fmt: skip
    return DecodeWork(lists[0], lists[1], row_items, counts, arrived, partial_out, partial_max, partial_sum)


@functools.cache
def _num_sms(index: int) -> int:
    """Multiprocessors of a GPU; a few for the interpreter, whose device is -1."""
    return torch.cuda.get_device_properties(index).multi_processor_count if index >= 0 else _INTERPRETED_SMS
