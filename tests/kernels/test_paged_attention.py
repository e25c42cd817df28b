"""Paged attention against its definition: the reference, and the kernels in the interpreter or on the GPU."""

from types import ModuleType

import pytest
import torch

from kernels.paged_attention import QUERY_TILE, kernel, query_tiles, reference
from kernels.paged_attention.decode import decode_attention
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


@pytest.mark.parametrize("block_size", [16, 128, 256])
@pytest.mark.parametrize("num_stages", [2, 3])
@pytest.mark.parametrize("tile", [32, 64, 128])
def test_tiles_larger_than_what_items_begin_at_multiples_of(
    tile: int, num_stages: int, block_size: int
) -> None:
    """A tile may begin in the middle of a block that could hold it whole; it may be looked up ahead or not."""
    shape = Shape(4, 2, 64, block_size)
    lengths = [150, 3, 700]
    batch = attention_batch(shape, lengths, [], device=DEVICE)
    tables, lens = batch.block_tables, batch.context_lens
    plan = planned(kernel, tables, lens, len(lengths), None, 4, 2, 64)
    assert plan.decode is not None
    out = torch.full_like(batch.q, float("nan"))
    decode_attention(
        batch.q, batch.k_cache, batch.v_cache, tables, lens, plan.decode, out, batch.scale, None,
        tile=tile, num_stages=num_stages,
    )  # fmt: skip
    assert_attends(out, batch, 2e-5)


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
    for num_rows in (1, 2, 3, 64, 255, 512, 1024):
        lengths = torch.randint(0, 700, (num_rows,)).tolist()
        batch = attention_batch(shape, lengths, [], dtype=torch.bfloat16, device="cuda")
        assert_attends(attend(kernel, batch, shape, None), batch, 2e-2)
