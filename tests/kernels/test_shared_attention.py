"""Decoding rows that begin alike: what they share is read by groups, and nobody's result changes."""

from dataclasses import replace

import pytest
import torch

from kernels.paged_attention import SharedPrefixes, group_members, kernel, reference
from tests.kernels.test_fp8_cache import head_scales, in_8_bits, widened
from tests.support.attention_batch import (
    AttentionBatch,
    Shape,
    assert_attends,
    attention_batch,
    naive,
    planned,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [
    Shape(2, 1, 64, 16),
    Shape(8, 2, 128, 64),
    Shape(6, 2, 96, 128),
    Shape(4, 4, 64, 16),
]


def sharing(
    batch: AttentionBatch, groups: list[list[int]], tokens: int, shape: Shape
) -> tuple[AttentionBatch, SharedPrefixes]:
    """The batch in which each group's first `tokens` are its first row's, and the groups as the kernel wants them."""
    tables = batch.block_tables.clone()
    members = group_members(shape.heads, shape.kv_heads)
    lens = torch.zeros(batch.num_decoding, dtype=torch.int32, device=tables.device)
    # One more than there are: not every group that there is room for is used.
    listed = torch.full((len(groups) + 1, members), -1, dtype=torch.int32, device=tables.device)
    for number, group in enumerate(groups):
        assert len(group) <= members
        tables[group, : tokens // shape.block_size] = tables[group[0], : tokens // shape.block_size].clone()
        lens[group] = tokens
        listed[number, : len(group)] = torch.tensor(group, dtype=torch.int32, device=tables.device)
    wanted = batch.wanted.clone()
    for row, length in enumerate(batch.context_lens.tolist()):
        if length:
            wanted[row] = _by_definition(batch, tables[row], row, length, shape)
    return replace(batch, block_tables=tables, wanted=wanted), SharedPrefixes(lens, listed)


def _by_definition(
    batch: AttentionBatch, table: torch.Tensor, row: int, length: int, shape: Shape
) -> torch.Tensor:
    at = torch.arange(length, device=table.device)
    blocks, offsets = table[at // shape.block_size].long(), at % shape.block_size
    keys, values = batch.k_cache[blocks, :, offsets], batch.v_cache[blocks, :, offsets]
    return naive(batch.q[row : row + 1], keys, values, None)[0]


def attend(batch: AttentionBatch, prefixes: SharedPrefixes, shape: Shape) -> torch.Tensor:
    plan = planned(
        kernel,
        batch.block_tables, batch.context_lens, batch.num_decoding, None,
        shape.heads, shape.kv_heads, shape.head_dim, prefixes,
    )  # fmt: skip
    # As every layer does: what a launch leaves behind must not show in the next.
    for _ in range(2):
        found = kernel.paged_attention(batch.q, batch.k_cache, batch.v_cache, plan, batch.scale, None)
    return found


@pytest.mark.parametrize("tokens", [128, 640])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_with_and_without_a_group_attend_to_all_they_see(shape: Shape, tokens: int) -> None:
    lengths = [tokens + 1, tokens + 70, 40, tokens + 200, tokens + 3, 300, tokens + 64, tokens + 5]
    batch = attention_batch(shape, lengths, [], device=DEVICE)
    batch, prefixes = sharing(batch, [[0, 4, 3], [7, 1]], tokens, shape)
    assert_attends(attend(batch, prefixes, shape), batch, 2e-5)


@pytest.mark.usefixtures("order")
def test_what_is_shared_is_attended_to_once_however_the_rows_are_gone_about() -> None:
    shape = SHAPES[0]
    lengths = [129, 198, 40, 328, 131, 300, 192, 0, 133]
    batch = attention_batch(shape, lengths, [], device=DEVICE)
    batch, prefixes = sharing(batch, [[0, 4, 3], [8, 1]], 128, shape)
    assert_attends(attend(batch, prefixes, shape), batch, 2e-5)


@pytest.mark.parametrize("done", [[0], [0, 1], [0, 1, 2]], ids=str)
def test_rows_of_a_group_that_are_done_are_left_out(done: list[int]) -> None:
    """The first of a group may be among them, and its block table is nobody's then."""
    shape = SHAPES[0]
    batch = attention_batch(shape, [150, 160, 170, 20], [], device=DEVICE)
    batch, prefixes = sharing(batch, [[0, 1, 2]], 128, shape)
    batch.context_lens[done] = 0
    batch.block_tables[done] = 1 << 20
    batch.wanted[done] = float("nan")
    assert_attends(attend(batch, prefixes, shape), batch, 2e-5)


def test_a_row_whose_context_is_not_longer_than_what_is_shared_attends_by_itself() -> None:
    shape = SHAPES[0]
    batch = attention_batch(shape, [200, 128, 190], [], device=DEVICE)
    batch, prefixes = sharing(batch, [[1, 0, 2]], 128, shape)
    assert_attends(attend(batch, prefixes, shape), batch, 2e-5)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_a_cache_of_8_bits_is_read_times_its_scales(shape: Shape) -> None:
    batch = attention_batch(shape, [200, 230, 140, 90], [], device=DEVICE)
    batch, prefixes = sharing(batch, [[0, 1, 2]], 128, shape)
    scales = head_scales(shape.kv_heads)
    k_cache, v_cache = in_8_bits(batch, scales)
    batch.q = batch.q / (scales.keys.repeat_interleave(shape.heads // shape.kv_heads)[:, None] * 16)
    sizes = (shape.heads, shape.kv_heads, shape.head_dim)
    rows = (batch.block_tables, batch.context_lens, batch.num_decoding, None)
    plan = planned(kernel, *rows, *sizes, prefixes)
    found = kernel.paged_attention(batch.q, k_cache, v_cache, plan, batch.scale, None, scales)
    wanted = reference.paged_attention(
        batch.q.double(), widened(k_cache, scales.keys, torch.float64), widened(v_cache, scales.values, torch.float64),
        reference.plan_attention(*rows, *sizes), batch.scale, None,
    )  # fmt: skip
    size = scales.values.repeat_interleave(shape.heads // shape.kv_heads)[:, None] * 16
    assert ((found.double() - wanted) / size).abs().max() <= 2e-5


def test_heads_of_a_groups_rows_fill_a_tile() -> None:
    assert [group_members(heads, 2) for heads in (2, 4, 6, 8, 16, 32, 128, 256)] == [
        64,
        32,
        16,
        16,
        8,
        4,
        1,
        1,
    ]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 64, 128])
def test_shapes_of_models_on_the_gpu(block_size: int, head_dim: int, group: int, dtype: torch.dtype) -> None:
    shape = Shape(2 * group, 2, head_dim, block_size)
    size = group_members(shape.heads, shape.kv_heads)
    lengths = [2048 + 37 * row % 500 + 1 for row in range(2 * size + 3)]
    batch = attention_batch(shape, lengths, [], dtype=dtype, device="cuda")
    groups = [list(range(size)), list(range(size + 2, 2 * size + 1))]
    batch, prefixes = sharing(batch, groups, 1920, shape)
    assert_attends(attend(batch, prefixes, shape), batch, 4e-3 if dtype == torch.float16 else 2e-2)
