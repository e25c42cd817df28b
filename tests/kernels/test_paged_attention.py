"""Paged attention against its definition: the reference, and the kernels in the interpreter or on the GPU."""

from types import ModuleType

import pytest
import torch

from kernels.paged_attention import (
    QUERY_TILE,
    DecodeWork,
    Order,
    ProgramSizes,
    kernel,
    query_tiles,
    reference,
)
from kernels.paged_attention.decode import decode_attention
from kernels.paged_attention.plan import plan_decode
from kernels.paged_attention.prefill import prefill_attention
from tests.support.attention_batch import AttentionBatch, Shape, assert_attends, attention_batch, planned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [
    Shape(1, 1, 64, 16),
    Shape(4, 2, 80, 16),
    Shape(8, 1, 96, 32),
    Shape(16, 2, 128, 64),
    Shape(6, 6, 256, 16),
    Shape(16, 1, 64, 128),
]
# Context lengths of rows that decode, and (tokens in this pass, tokens in all) of chunks.
BATCHES: list[tuple[list[int], list[tuple[int, int]]]] = [
    ([1], []),
    ([37, 0, 1, 128, 0], []),
    ([], [(5, 5), (130, 130)]),
    ([50, 0], [(20, 70), (64, 64), (3, 40)]),
    ([], [(2, 50), (1, 1), (3, 90)]),
]
IMPLEMENTATIONS = [reference, kernel]
ORDERS: list[Order] = ["as they come", "longest first", "in shares"]
TILE = 32
LENGTHS = [[70, 0, 200, 64, 1, 0, 0, 130], [1], [32] * 20, [900, 1, 1, 1], list(range(0, 600, 5))]


def attend(
    implementation: ModuleType, batch: AttentionBatch, shape: Shape, window: int | None
) -> torch.Tensor:
    plan = planned(
        implementation,
        batch.block_tables,
        batch.context_lens,
        batch.num_decoding,
        batch.chunks,
        shape.heads,
        shape.kv_heads,
        shape.head_dim,
    )
    found: torch.Tensor = implementation.paged_attention(
        batch.q, batch.k_cache, batch.v_cache, plan, batch.scale, window
    )
    return found


def decoded(
    batch: AttentionBatch, shape: Shape, sizes: ProgramSizes, window: int | None = None
) -> torch.Tensor:
    """Attention of rows that decode, by programs of these sizes; twice, as two layers do it with one plan."""
    rows, lens = batch.num_decoding, batch.context_lens
    work = plan_decode(lens, rows, shape.heads, shape.kv_heads, shape.head_dim, sizes=sizes)
    for _ in range(2):
        out = torch.full_like(batch.q, float("nan"))
        decode_attention(
            batch.q, batch.k_cache, batch.v_cache, batch.block_tables, lens, work, out, batch.scale, window
        )
    return out


def work_of(lengths: list[int], order: Order) -> DecodeWork:
    """Of rows of these lengths, with two KV heads."""
    sizes = ProgramSizes(TILE, num_warps=4, num_stages=2, programs_per_sm=3, order=order)
    lens = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    return plan_decode(lens, len(lengths), 4, 2, 64, sizes=sizes)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["reference", "kernel"])
@pytest.mark.parametrize("window", [None, 1, 30])
@pytest.mark.parametrize("case", BATCHES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_row_sees_its_own_pages_up_to_itself(
    shape: Shape,
    case: tuple[list[int], list[tuple[int, int]]],
    window: int | None,
    implementation: ModuleType,
) -> None:
    batch = attention_batch(shape, *case, window=window, device=DEVICE)
    assert_attends(attend(implementation, batch, shape, window), batch, 2e-5)


@pytest.mark.parametrize("window", [None, 200])
def test_long_contexts_are_split_and_merged_with_short_ones_beside_them(window: int | None) -> None:
    """The plan is used again, as every layer does: what merging leaves behind must not show."""
    shape = Shape(8, 2, 64, 16)
    lengths = [1500, 3, 0, 700, 64]
    batch = attention_batch(shape, lengths, [], window=window, device=DEVICE)
    plan = planned(kernel, batch.block_tables, batch.context_lens, len(lengths), None, 8, 2, 64)
    assert plan.decode is not None
    assert int(plan.decode.items[4, 0]) > 1
    for _ in range(3):
        found = kernel.paged_attention(batch.q, batch.k_cache, batch.v_cache, plan, batch.scale, window)
        assert_attends(found, batch, 2e-5)


@pytest.mark.parametrize("block_size", [16, 128])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("tile", "num_stages"), [(32, 2), (32, 3), (64, 3), (128, 2)])
def test_tiles_that_are_a_part_of_a_block_or_several(
    tile: int, num_stages: int, order: Order, block_size: int
) -> None:
    """They may be looked up ahead or not."""
    sizes = ProgramSizes(tile, num_warps=4, num_stages=num_stages, programs_per_sm=3, order=order)
    shape = Shape(4, 2, 64, block_size)
    batch = attention_batch(shape, [150, 3, 700], [], device=DEVICE)
    assert_attends(decoded(batch, shape, sizes), batch, 2e-5)


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("programs", [1, 5])
def test_rows_are_shared_out_among_programs(programs: int, window: int | None) -> None:
    """Shares begin and end within rows and at their ends, hold many rows or a part of one; some rows are empty."""
    shape = Shape(4, 2, 64, 16)
    for lengths in ([70, 0, 200, 64, 1, 0, 0, 130], [0, 0, 5], [300, 20, 20, 20, 700, 0], [0]):
        batch = attention_batch(shape, lengths, [], window=window, device=DEVICE)
        sizes = ProgramSizes(32, num_warps=4, num_stages=2, programs_per_sm=programs, order="in shares")
        assert_attends(decoded(batch, shape, sizes, window), batch, 2e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_items_cover_every_token_once(lengths: list[int], order: Order) -> None:
    work = work_of(lengths, order)
    rows, starts, ends, first_items, counts = work.items.tolist()
    seen: list[list[int]] = [[] for _ in lengths]
    for item in range(len(rows)):
        if starts[item] < ends[item]:
            assert first_items[item] <= item < first_items[item] + counts[item]
            seen[rows[item]] += range(starts[item], ends[item])
    assert seen == [list(range(length)) for length in lengths]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_shares_are_equal_and_hold_every_item_once(lengths: list[int]) -> None:
    work = work_of(lengths, "in shares")
    assert work.spans is not None
    _, starts, ends, _, _ = work.items.tolist()
    shares, held = [], []
    for first, end in zip(*work.spans.tolist(), strict=True):
        items = [item for item in range(first, end) if starts[item] < ends[item]]
        shares.append(sum(-(-(ends[item] - starts[item]) // TILE) for item in items))
        held += items
    assert held == [item for item, start in enumerate(starts) if start < ends[item]]
    total = sum(-(-length // TILE) for length in lengths)
    share = -(-total // len(shares))
    assert shares == [min(share, max(0, total - share * number)) for number in range(len(shares))]


def test_rows_with_most_tokens_come_first() -> None:
    work = work_of(LENGTHS[-1], "longest first")
    firsts = [row for row, start, end in zip(*work.items.tolist()[:3], strict=True) if start == 0 < end]
    assert firsts == list(range(len(LENGTHS[-1]) - 1, 0, -1))


@pytest.mark.parametrize("block_size", [16, 128])
@pytest.mark.parametrize("pack", [1, 4])
def test_tiles_of_chunks_looked_up_ahead(pack: int, block_size: int) -> None:
    shape = Shape(4, 1, 64, block_size)
    batch = attention_batch(shape, [], [(20, 70), (3, 90), (130, 300)], device=DEVICE)
    plan = planned(kernel, batch.block_tables, batch.context_lens, 0, batch.chunks, 4, 1, 64)
    assert plan.chunks is not None
    out = torch.full_like(batch.q, float("nan"))
    prefill_attention(
        batch.q, batch.k_cache, batch.v_cache, plan, plan.chunks, out, batch.scale, None,
        block_m=64, block_n=32, num_warps=4, pack=pack, num_stages=3,
    )  # fmt: skip
    assert_attends(out, batch, 2e-5)


def test_queries_that_lie_apart() -> None:
    shape = Shape(4, 2, 64, 16)
    batch = attention_batch(shape, [33], [(9, 20)], device=DEVICE)
    wide = torch.zeros(len(batch.q), 6, 64, device=DEVICE)
    wide[:, :4] = batch.q
    batch.q = wide[:, :4]
    assert_attends(attend(kernel, batch, shape, None), batch, 2e-5)


def test_tiles_cover_every_query_once_and_begin_with_those_that_see_most() -> None:
    lengths = [1, QUERY_TILE, 3 * QUERY_TILE + 1, QUERY_TILE - 1]
    chunks, starts = query_tiles(lengths)
    assert sorted(zip(chunks.tolist(), starts.tolist(), strict=True)) == [
        (chunk, start) for chunk, length in enumerate(lengths) for start in range(0, length, QUERY_TILE)
    ]
    assert starts.tolist() == sorted(starts.tolist(), reverse=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("group", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_shapes_of_models_on_the_gpu(block_size: int, head_dim: int, group: int, dtype: torch.dtype) -> None:
    """Half types round probabilities to 8 or 11 bits, and results once more."""
    shape = Shape(2 * group, 2, head_dim, block_size)
    decoding = [1, 0, 17, 4096, 300, 32768, 0, 2047]
    batch = attention_batch(
        shape, decoding, [(1, 1), (300, 300), (128, 900), (77, 2500)], dtype=dtype, device="cuda"
    )
    tolerance = 2e-2 if dtype is torch.bfloat16 else 3e-3
    assert_attends(attend(kernel, batch, shape, None), batch, tolerance)


@pytest.mark.gpu
def test_every_number_of_rows_on_the_gpu() -> None:
    shape = Shape(8, 2, 128, 16)
    for num_rows in (1, 2, 3, 33, 64, 130, 150, 255, 512, 1024):
        lengths = torch.randint(0, 700, (num_rows,)).tolist()
        batch = attention_batch(shape, lengths, [], dtype=torch.bfloat16, device="cuda")
        assert_attends(attend(kernel, batch, shape, None), batch, 2e-2)
