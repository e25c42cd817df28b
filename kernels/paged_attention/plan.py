# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: the work list of decode attention, planned by one program once per step.

A row's KV is cut into items of the same number of tiles, so few that the items of all heads come to about one per
place on the device where a program can run. A batch that fills the device with whole rows is not cut at all.
"""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from kernels.paged_attention import DecodeWork, SharedPrefixes, SharedWork

TILE = 64
"""Items begin at multiples of so many tokens."""
_INTERPRETED_SMS = 4
_MOST_SPLITS = 8
SPLIT_TILE = 64
"""Tokens that rows share are split at multiples of so many."""


class ProgramSizes(NamedTuple):
    """How an item is attended, and for how many items at once a plan cuts the work."""

    tile: int
    """KV tokens at a time."""
    num_warps: int
    num_stages: int
    programs_per_sm: int


def program_sizes(group: int, num_rows: int) -> ProgramSizes:
    """What was measured best for so many query heads per KV head, and rows (docs/performance.md).

    Few rows want small tiles, so that there are enough programs. Many rows of unequal lengths want them cut finer than
    there are places, so that no long row is begun last.
    """
    if num_rows >= (96 if group <= 4 else 128):
        return ProgramSizes(tile=64, num_warps=4, num_stages=3, programs_per_sm=6)
    programs_per_sm = 4 if group <= 4 else 3
    if num_rows >= 48:
        return ProgramSizes(tile=32, num_warps=2, num_stages=3, programs_per_sm=programs_per_sm)
    return ProgramSizes(tile=64, num_warps=2, num_stages=2, programs_per_sm=programs_per_sm)


@triton.jit
def own_start(shared_lens, context_lens):
    """Where the part of rows' contexts begins that they attend to themselves."""
    return tl.where(shared_lens < context_lens, shared_lens, 0)


@triton.jit
def split_span(length, SPLITS: tl.constexpr, TILE: tl.constexpr):
    """Tokens of each split of `length` ones but the last, and how many splits are not empty."""
    span = tl.maximum((length + TILE * SPLITS - 1) // (TILE * SPLITS), 1) * TILE
    return span, (length + span - 1) // span


@triton.jit(do_not_specialize=["num_rows", "most_items"])
def _plan_kernel(
    context_lens_ptr,
    shared_lens_ptr,
    items_ptr,
    arrived_ptr,
    num_rows,
    most_items,
    KV_HEADS: tl.constexpr,
    PROGRAMS: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_SHARED: tl.constexpr,
):
    rows = tl.arange(0, ROWS)
    mask = rows < num_rows
    context_lens = tl.load(context_lens_ptr + rows, mask=mask, other=0)
    first_tokens = tl.zeros_like(context_lens)
    if HAS_SHARED:
        first_tokens = own_start(tl.load(shared_lens_ptr + rows, mask=mask, other=0), context_lens)
    tiles = (context_lens - first_tokens + TILE - 1) // TILE
    work = tl.sum(tiles, axis=0) * KV_HEADS
    per_item = tl.maximum((work + PROGRAMS - 1) // PROGRAMS, 1)
    num_items = (tiles + per_item - 1) // per_item
    # A row's items are as even as can be, which may take fewer of them.
    row_tiles = tl.where(tiles > 0, (tiles + num_items - 1) // tl.maximum(num_items, 1), 1)
    num_items = (tiles + row_tiles - 1) // row_tiles
    ends = tl.cumsum(num_items, axis=0)
    firsts = ends - num_items
    for number in range(tl.max(num_items, axis=0)):
        has_one = number < num_items
        start = first_tokens + number * row_tiles * TILE
        at = items_ptr + firsts + number
        tl.store(at, rows, mask=has_one)
        tl.store(at + most_items, start, mask=has_one)
        tl.store(at + 2 * most_items, tl.minimum(start + row_tiles * TILE, context_lens), mask=has_one)
        tl.store(at + 3 * most_items, firsts, mask=has_one)
        tl.store(at + 4 * most_items, num_items, mask=has_one)
    for first in range(tl.sum(num_items, axis=0), most_items, ROWS):
        unused = first + rows
        tl.store(items_ptr + most_items + unused, tl.zeros_like(rows), mask=unused < most_items)
        tl.store(items_ptr + 2 * most_items + unused, tl.zeros_like(rows), mask=unused < most_items)
    for head in tl.static_range(KV_HEADS):
        tl.store(arrived_ptr + rows * KV_HEADS + head, tl.zeros_like(rows), mask=mask)


def plan_decode(
    context_lens: torch.Tensor,
    num_rows: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    programs_per_sm: int = 0,
    prefixes: SharedPrefixes | None = None,
) -> DecodeWork:
    """The work of the first `num_rows` rows, of which there is at least one; 0 programs: what was measured best."""
    programs_per_sm = programs_per_sm or program_sizes(num_heads // num_kv_heads, num_rows).programs_per_sm
    device = context_lens.device
    programs = programs_per_sm * _num_sms(device)
    most_items = num_rows + triton.cdiv(programs, num_kv_heads)
    items = torch.empty((5, most_items), dtype=torch.int32, device=device)
    arrived = torch.empty((num_rows, num_kv_heads), dtype=torch.int32, device=device)
    partial_out = torch.empty((most_items, num_heads, head_dim), dtype=torch.float32, device=device)
    partial_max, partial_sum = torch.empty((2, most_items, num_heads), dtype=torch.float32, device=device)
    _plan_kernel[(1,)](
        context_lens, context_lens if prefixes is None else prefixes.lens, items, arrived, num_rows, most_items,
        KV_HEADS=num_kv_heads, PROGRAMS=programs, TILE=TILE, ROWS=triton.next_power_of_2(num_rows),
        HAS_SHARED=prefixes is not None, num_warps=4,
    )  # fmt: skip
    shared = None if prefixes is None else _shared_work(prefixes, num_rows, num_heads, num_kv_heads, head_dim)
    return DecodeWork(items, arrived, partial_out, partial_max, partial_sum, shared)


def _shared_work(
    prefixes: SharedPrefixes, num_rows: int, num_heads: int, num_kv_heads: int, head_dim: int
) -> SharedWork:
    """Room for as many splits as give two programs to every multiprocessor if all rows are in full groups."""
    device, members = prefixes.lens.device, prefixes.members.shape[1]
    programs = triton.cdiv(num_rows, members) * num_kv_heads
    splits = min(_MOST_SPLITS, triton.next_power_of_2(triton.cdiv(2 * _num_sms(device), programs)))
    partial_out = torch.empty((num_rows, splits, num_heads, head_dim), dtype=torch.float32, device=device)
    partial_max, partial_sum = torch.empty(
        (2, num_rows, splits, num_heads), dtype=torch.float32, device=device
    )
    return SharedWork(prefixes, partial_out, partial_max, partial_sum)


@functools.cache
def _num_sms(device: torch.device) -> int:
    """Multiprocessors of a GPU; a few for the interpreter."""
    if device.type != "cuda":
        return _INTERPRETED_SMS
    return torch.cuda.get_device_properties(device.index or 0).multi_processor_count
