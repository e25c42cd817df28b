# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: the work list of decode attention, planned by one program once per step.

A row's KV is cut into items of the same number of tiles, about as many as there are places on the device where a
program can run. Few rows' items all run at once. Of very many rows those with most tokens begin first, so that no long
one is begun last. Between, where whole rows would leave places empty, or take two turns, each place gets an equal
share of all rows' tiles: the end of one row, whole ones, the beginning of another (Osama et al., "Stream-K", 2023).
"""

import functools

import torch
import triton
import triton.language as tl

from kernels.paged_attention import DecodeWork, ProgramSizes, SharedPrefixes, SharedWork

_INTERPRETED_SMS = 4
_MOST_SPLITS = 8
SPLIT_TILE = 64
"""Tokens that rows share are split at multiples of so many."""


def program_sizes(group: int, num_rows: int) -> ProgramSizes:
    """What was measured best for so many query heads per KV head, and rows of unequal lengths (performance.md, 28)."""
    is_narrow = group <= 4
    if num_rows >= (144 if is_narrow else 112):
        return ProgramSizes(
            tile=32, num_warps=2, num_stages=2, programs_per_sm=8 if is_narrow else 6, order="longest first"
        )
    if num_rows >= (32 if is_narrow else 40) and group <= 8:
        return ProgramSizes(tile=32, num_warps=2, num_stages=2, programs_per_sm=6, order="in shares")
    return ProgramSizes(tile=64, num_warps=2, num_stages=2, programs_per_sm=4 if is_narrow else 3)


@triton.jit
def own_start(shared_lens, context_lens):
    """Where the part of rows' contexts begins that they attend to themselves."""
    return tl.where(shared_lens < context_lens, shared_lens, 0)


@triton.jit
def split_span(length, SPLITS: tl.constexpr, TILE: tl.constexpr):
    """Tokens of each split of `length` ones but the last, and how many splits are not empty."""
    span = tl.maximum((length + TILE * SPLITS - 1) // (TILE * SPLITS), 1) * TILE
    return span, (length + span - 1) // span


@triton.jit
def _own_tokens(context_lens_ptr, shared_lens_ptr, rows, mask, HAS_SHARED: tl.constexpr):
    """Where the tokens begin and end that rows attend to themselves."""
    context_lens = tl.load(context_lens_ptr + rows, mask=mask, other=0)
    first_tokens = tl.zeros_like(context_lens)
    if HAS_SHARED:
        first_tokens = own_start(tl.load(shared_lens_ptr + rows, mask=mask, other=0), context_lens)
    return first_tokens, context_lens


@triton.jit
def _shares(tiles, rows, PROGRAMS: tl.constexpr):
    """Equal shares of all tiles, one row's after another's. Of each row: the program of its first tile, its first item,
    and how many it has; how many of that program's tiles are of rows before; and the tiles of a share."""
    share = tl.maximum((tl.sum(tiles, axis=0) + PROGRAMS - 1) // PROGRAMS, 1)
    begins = tl.cumsum(tiles, axis=0) - tiles
    first_program = begins // share
    num_items = tl.where(tiles > 0, (begins + tiles - 1) // share - first_program + 1, 0)
    # A next item is another program's or another row's, so that this numbers them.
    return first_program, first_program + rows, num_items, begins % share, share


@triton.jit
def _items(tiles, PROGRAMS: tl.constexpr, KV_HEADS: tl.constexpr):
    """Each row's first item, how many it has, and their tiles, the last one's excepted."""
    per_item = tl.maximum((tl.sum(tiles, axis=0) * KV_HEADS + PROGRAMS - 1) // PROGRAMS, 1)
    num_items = (tiles + per_item - 1) // per_item
    # A row's items are as even as can be, which may take fewer of them.
    row_tiles = tl.where(tiles > 0, (tiles + num_items - 1) // tl.maximum(num_items, 1), 1)
    num_items = (tiles + row_tiles - 1) // row_tiles
    return tl.cumsum(num_items, axis=0) - num_items, num_items, row_tiles


@triton.jit(do_not_specialize=["num_rows", "most_items"])
def _plan_kernel(
    context_lens_ptr, shared_lens_ptr, items_ptr, spans_ptr, arrived_ptr, num_rows, most_items,
    KV_HEADS: tl.constexpr, PROGRAMS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr, HAS_SHARED: tl.constexpr,
    IN_SHARES: tl.constexpr, LONGEST_FIRST: tl.constexpr,
):  # fmt: skip
    rows = tl.arange(0, ROWS)
    mask = rows < num_rows
    nothing = tl.zeros_like(rows)
    for first in range(0, most_items, ROWS):
        places = first + rows
        tl.store(items_ptr + most_items + places, nothing, mask=places < most_items)
        tl.store(items_ptr + 2 * most_items + places, nothing, mask=places < most_items)
    for head in tl.static_range(KV_HEADS):
        tl.store(arrived_ptr + rows * KV_HEADS + head, nothing, mask=mask)
    first_tokens, context_lens = _own_tokens(context_lens_ptr, shared_lens_ptr, rows, mask, HAS_SHARED)
    tiles = (context_lens - first_tokens + TILE - 1) // TILE
    if LONGEST_FIRST:
        rows = tl.sort(tiles * ROWS + rows, descending=True) % ROWS
        first_tokens, context_lens = _own_tokens(
            context_lens_ptr, shared_lens_ptr, rows, rows < num_rows, HAS_SHARED
        )
        tiles = (context_lens - first_tokens + TILE - 1) // TILE
    SPANS: tl.constexpr = PROGRAMS // KV_HEADS
    if IN_SHARES:
        for first in range(0, 2 * SPANS, ROWS):
            tl.store(spans_ptr + first + rows, nothing, mask=first + rows < 2 * SPANS)
        first_program, firsts, num_items, skipped, step = _shares(tiles, rows, SPANS)
        is_last = tl.cumsum(tiles, axis=0) == tl.sum(tiles, axis=0)
    else:
        firsts, num_items, step = _items(tiles, PROGRAMS, KV_HEADS)
        skipped = 0
    # What follows goes where nothing was just said to be.
    tl.debug_barrier()
    for number in range(tl.max(num_items, axis=0)):
        has_one = number < num_items
        end = (number + 1) * step - skipped
        at = items_ptr + firsts + number
        tl.store(at, rows, mask=has_one)
        tl.store(at + most_items, first_tokens + tl.maximum(end - step, 0) * TILE, mask=has_one)
        tl.store(at + 2 * most_items, tl.minimum(first_tokens + end * TILE, context_lens), mask=has_one)
        tl.store(at + 3 * most_items, firsts, mask=has_one)
        tl.store(at + 4 * most_items, num_items, mask=has_one)
        if IN_SHARES:
            span = spans_ptr + first_program + number
            tl.store(span, firsts + number, mask=has_one & (end >= step))
            tl.store(span + SPANS, firsts + number + 1, mask=has_one & ((end <= tiles) | is_last))


def plan_decode(
    context_lens: torch.Tensor,
    num_rows: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    sizes: ProgramSizes | None = None,
    prefixes: SharedPrefixes | None = None,
) -> DecodeWork:
    """The work of the first `num_rows` rows, of which there is at least one; no sizes: what was measured best."""
    sizes = sizes or program_sizes(num_heads // num_kv_heads, num_rows)
    device, in_shares = context_lens.device, sizes.order == "in shares"
    programs = max(num_kv_heads, sizes.programs_per_sm * _num_sms(device))
    most_items = num_rows + triton.cdiv(programs, num_kv_heads)
    items = torch.empty((5, most_items), dtype=torch.int32, device=device)
    spans = None
    if in_shares:
        spans = torch.empty((2, programs // num_kv_heads), dtype=torch.int32, device=device)
    arrived = torch.empty((num_rows, num_kv_heads), dtype=torch.int32, device=device)
    partial_out = torch.empty((most_items, num_heads, head_dim), dtype=torch.float32, device=device)
    partial_max, partial_sum = torch.empty((2, most_items, num_heads), dtype=torch.float32, device=device)
    _plan_kernel[(1,)](
        context_lens, context_lens if prefixes is None else prefixes.lens, items, items if spans is None else spans,
        arrived, num_rows, most_items,
        KV_HEADS=num_kv_heads, PROGRAMS=programs, TILE=sizes.tile, ROWS=triton.next_power_of_2(num_rows),
        HAS_SHARED=prefixes is not None, IN_SHARES=in_shares, LONGEST_FIRST=sizes.order == "longest first", num_warps=4,
    )  # fmt: skip
    shared = None if prefixes is None else _shared_work(prefixes, num_rows, num_heads, num_kv_heads, head_dim)
    return DecodeWork(sizes, items, spans, arrived, partial_out, partial_max, partial_sum, shared)


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
