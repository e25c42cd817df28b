"""Attention of long chunks on Hopper, whatever their lengths, prefixes, pages and neighbours: what an emulation of its
asynchronous parts makes of it, and the GPU itself."""

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from kernels import pdl
from kernels.paged_attention import AttentionPlan, Chunks, hopper, hopper_fetch
from kernels.paged_attention.prefill import prefill_attention
from tests.support.attention_batch import AttentionBatch, Shape, assert_attends, attention_batch
from tests.support.gluon_prefill import ORDERS, Emulated, Rows

TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Probabilities are rounded to 8 or 11 bits, and results once more; in the emulation nothing is."""
SMALL = [(300, 300), (1, 5), (130, 471), (128, 128), (3, 257)]
LONG = [(2049, 2049), (1000, 3001), (900, 5000)]
RAGGED = [(1, 1), (5, 5), (129, 129), (777, 2345), (64, 64), (3, 1000), (1, 5000)]


def long_prefill(batch: AttentionBatch, chunks: Chunks | None, num_programs: int = 0) -> torch.Tensor:
    """Results of a batch's chunks; what is of its decoding rows stays not a number."""
    plan = AttentionPlan(batch.block_tables, batch.context_lens, batch.num_decoding, chunks, None)
    k_cache, v_cache = batch.k_cache, batch.v_cache
    pages = hopper.pages_at(k_cache.data_ptr(), v_cache.data_ptr(), k_cache.shape, k_cache.dtype)
    assert pages is not None
    assert chunks is not None
    out = torch.full_like(batch.q, float("nan"))
    kv_heads, block_size = batch.k_cache.shape[1:3]
    hopper.long_prefill_attention(
        batch.q, pages, kv_heads, block_size, plan, chunks, out, batch.scale, num_programs=num_programs
    )
    return out


def assert_chunks_attend(found: torch.Tensor, batch: AttentionBatch) -> None:
    first = batch.num_decoding
    assert bool(found[:first].isnan().all())
    chunks_only = replace(batch, wanted=batch.wanted[first:])
    assert_attends(found[first:], chunks_only, TOLERANCES[batch.q.dtype])


def filled(batch: AttentionBatch) -> Chunks:
    """The batch's chunks filled up as for a graph: with some without queries, and tiles past their chunk's end."""
    chunks, num_chunks, num_tiles = batch.chunks, 3, 9
    assert chunks is not None

    def longer(values: torch.Tensor, places: int, filling: int) -> torch.Tensor:
        return torch.cat([values, values.new_full((places,), filling)])

    batch.block_tables = torch.cat([batch.block_tables, torch.zeros_like(batch.block_tables[:num_chunks])])
    batch.context_lens = longer(batch.context_lens, num_chunks, 0)
    return Chunks(
        longer(chunks.query_lens, num_chunks, 0),
        longer(chunks.query_starts, num_chunks, 0),
        longer(chunks.tile_chunks, num_tiles, 0),
        longer(chunks.tile_starts, num_tiles, 1 << 30),
    )


@pytest.fixture
def on_hopper() -> None:
    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU")


def emulated(
    batch: AttentionBatch, chunks: Chunks, num_programs: int, order: tuple[bool, bool], seed: int
) -> torch.Tensor:
    """As `long_prefill`, of float32 on the CPU."""
    rows = torch.cat([cache.flatten(0, 2) for cache in (batch.v_cache, batch.k_cache)])
    pages: Any = hopper.Pages(Rows(rows), len(rows) // 2, 0)  # type: ignore[arg-type]
    plan = AttentionPlan(batch.block_tables, batch.context_lens, batch.num_decoding, chunks, None)
    out = torch.full_like(batch.q, float("nan"))
    kernel = Emulated(
        hopper._long_prefill_kernel,
        [hopper_fetch, hopper],
        seed,
        late_copies=order[0],
        late_products=order[1],
    )
    kv_heads, block_size = batch.k_cache.shape[1:3]
    with (
        mock.patch.object(hopper, "_long_prefill_kernel", kernel),
        mock.patch.object(pdl, "options", return_value={"PDL": False, "launch_pdl": False}),
    ):
        hopper.long_prefill_attention(
            batch.q, pages, kv_heads, block_size, plan, chunks, out, batch.scale, num_programs=num_programs
        )
    return out


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(
    ("shape", "num_programs"),
    [
        (Shape(4, 2, 64, 16), 5),
        (Shape(2, 2, 128, 32), 1),
        (Shape(2, 1, 128, 64), 3),
        (Shape(1, 1, 64, 128), 132),
    ],
    ids=str,
)
def test_whenever_copies_and_products_are_done(
    shape: Shape, num_programs: int, order: tuple[bool, bool]
) -> None:
    batch = attention_batch(shape, [3, 0], SMALL)
    assert batch.chunks is not None
    assert_chunks_attend(emulated(batch, batch.chunks, num_programs, order, seed=num_programs), batch)


@pytest.mark.parametrize("num_programs", [2, 9])
def test_a_batch_filled_up_for_a_graph_emulated(num_programs: int) -> None:
    batch = attention_batch(Shape(4, 2, 64, 16), [7, 9], [(200, 400), (33, 40)])
    chunks = filled(batch)
    assert_chunks_attend(emulated(batch, chunks, num_programs, (True, True), seed=0), batch)


def test_caches_whose_rows_cannot_be_counted_as_ones() -> None:
    shape = torch.Size([4, 2, 16, 128])
    assert hopper.pages_at(1 << 20, (1 << 20) + 128, shape, torch.bfloat16) is None
    assert hopper.pages_at(1 << 20, 1 << 42, shape, torch.bfloat16) is None
    pages = hopper.pages_at((1 << 20) + 512, 1 << 20, shape, torch.bfloat16)
    assert pages is not None
    assert (pages.k_row, pages.v_row, pages.rows.shape) == (2, 0, [2 + 4 * 2 * 16, 128])


@pytest.mark.gpu
@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
@pytest.mark.parametrize("case", [LONG, RAGGED], ids=["long", "ragged"])
def test_every_query_sees_its_own_pages_up_to_itself(
    case: list[tuple[int, int]], block_size: int, head_dim: int, dtype: torch.dtype
) -> None:
    batch = attention_batch(Shape(4, 2, head_dim, block_size), [], case, dtype=dtype, device="cuda")
    assert_chunks_attend(long_prefill(batch, batch.chunks), batch)


@pytest.mark.gpu
@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
def test_rows_that_decode_come_first_and_are_left_alone(group: int) -> None:
    shape = Shape(2 * group, 2, 128, 16)
    batch = attention_batch(
        shape, [5, 0, 900], [(1300, 1300), (70, 801)], dtype=torch.bfloat16, device="cuda"
    )
    assert_chunks_attend(long_prefill(batch, batch.chunks), batch)


@pytest.mark.gpu
@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize("num_programs", [1, 7, 0])
def test_programs_take_any_number_of_items_and_give_the_same_each_time(num_programs: int) -> None:
    batch = attention_batch(Shape(8, 2, 128, 16), [], LONG[1:], dtype=torch.bfloat16, device="cuda")
    first = long_prefill(batch, batch.chunks, num_programs)
    assert_chunks_attend(first, batch)
    for _ in range(20):
        assert torch.equal(long_prefill(batch, batch.chunks, num_programs), first)


@pytest.mark.gpu
@pytest.mark.usefixtures("on_hopper")
def test_a_batch_filled_up_for_a_graph() -> None:
    batch = attention_batch(
        Shape(8, 2, 128, 16), [7, 9], [(700, 900), (33, 40)], dtype=torch.bfloat16, device="cuda"
    )
    chunks = filled(batch)
    assert_chunks_attend(long_prefill(batch, chunks), batch)
    none = replace(
        chunks, query_lens=chunks.query_lens * 0, tile_starts=torch.full_like(chunks.tile_starts, 1 << 30)
    )
    assert bool(long_prefill(batch, none).isnan().all())


@pytest.mark.gpu
@pytest.mark.usefixtures("on_hopper")
@pytest.mark.parametrize(
    ("length", "window", "is_long"), [(1024, None, True), (300, None, False), (1024, 9, False)]
)
def test_it_is_taken_for_long_chunks_without_a_window(length: int, window: int | None, is_long: bool) -> None:
    batch = attention_batch(
        Shape(4, 2, 128, 16), [], [(length, length)], window=window, dtype=torch.bfloat16, device="cuda"
    )
    assert batch.chunks is not None
    plan = AttentionPlan(batch.block_tables, batch.context_lens, 0, batch.chunks, None)
    out = torch.full_like(batch.q, float("nan"))
    taken = mock.Mock(wraps=hopper.long_prefill_attention)
    with mock.patch.object(hopper, "long_prefill_attention", taken):
        prefill_attention(batch.q, batch.k_cache, batch.v_cache, plan, batch.chunks, out, batch.scale, window)
    assert taken.called == is_long
    assert_attends(out, batch, 2e-2)
