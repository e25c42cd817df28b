"""Rotation, KV write and attention in one op: the output and the cache are those of one op after the other."""

import pytest
import torch

from kernels.kv_scales import FP8, KvScales
from kernels.paged_attention import kernel as attention_kernel
from kernels.rope_attention import Rotation
from kernels.rope_attention import kernel as kernel_op
from kernels.rope_attention import reference as reference_op
from tests.support.attention_batch import AttentionBatch, Shape, attention_batch, planned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPS = 1e-6


class Case:
    """Rows that decode, whose last token is not in the cache yet, and the inputs of both ways."""

    def __init__(
        self, shape: Shape, contexts: list[int], dtype: torch.dtype, *, with_norm: bool, is_fp8: bool = False
    ) -> None:
        self.batch: AttentionBatch = attention_batch(shape, contexts, [], dtype=dtype, device=DEVICE)
        self.shape = shape
        self.caches = [cache.nan_to_num(0.0) for cache in (self.batch.k_cache, self.batch.v_cache)]
        self.scales = None
        if is_fp8:
            self.caches = [cache.to(FP8) for cache in self.caches]
            powers = 2.0 ** -torch.arange(shape.kv_heads, device=DEVICE)
            self.scales = KvScales(powers.float(), powers.flip(0).float())
        rows, heads = len(contexts), shape.heads + 2 * shape.kv_heads
        qkv = torch.randn(rows, heads, shape.head_dim, device=DEVICE).to(dtype)
        self.qkv = torch.split(qkv, [shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
        lens = self.batch.context_lens.long()
        positions = (lens - 1).clamp(min=0)
        tables = self.batch.block_tables.long().gather(1, positions[:, None] // shape.block_size)[:, 0]
        slots = torch.where(lens > 0, tables * shape.block_size + positions % shape.block_size, -1)
        angles = torch.rand(max(contexts) + 1, shape.head_dim // 2, device=DEVICE) * 6
        norms = torch.rand(2, shape.head_dim, device=DEVICE).to(dtype) + 0.5
        self.rotation = Rotation(
            torch.cat((angles.cos(), angles.sin()), dim=-1), positions, slots,
            norms[0] if with_norm else None, norms[1] if with_norm else None, EPS,
        )  # fmt: skip

    def check(self, window: int | None, tolerance: float) -> None:
        batch, shape = self.batch, self.shape
        q, k, v = self.qkv
        rows = (batch.block_tables, batch.context_lens, batch.num_decoding, None)
        sizes = (shape.heads, shape.kv_heads, shape.head_dim)
        found_caches = [cache.clone() for cache in self.caches]
        plan = planned(attention_kernel, *rows, *sizes)
        found = kernel_op.rope_attention(
            q, k, v, self.rotation, found_caches[0], found_caches[1], plan, batch.scale, window, self.scales
        )
        wanted_caches = [cache.clone() for cache in self.caches]
        wanted = reference_op.rope_attention(
            q, k, v, self.rotation, wanted_caches[0], wanted_caches[1], plan, batch.scale, window, self.scales
        )
        has_context = batch.context_lens > 0
        torch.testing.assert_close(found[has_context], wanted[has_context], atol=tolerance, rtol=tolerance)
        assert found.is_contiguous()
        for got, right, before in zip(found_caches, wanted_caches, self.caches, strict=True):
            # The new token's place and no other has changed.
            changed = (got.float() != before.float()).any(-1).any(1)
            assert int(changed.sum()) == int(has_context.sum())
            exact = 0.126 if self.scales is not None else tolerance
            got, right = got.float(), right.float()
            if DEVICE == "cpu" and self.scales is not None:
                # Triton's interpreter forgets the carry of what rounds up to a power of two.
                got = torch.where(got * 2 == right, right, got)
            torch.testing.assert_close(got, right, atol=exact * 0.1, rtol=exact)


SHAPES = [
    Shape(2, 1, 64, 16),
    Shape(4, 2, 80, 16),
    Shape(16, 2, 128, 64),
    Shape(5, 5, 96, 16),
    Shape(3, 3, 256, 16),
]


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("window", [None, 1, 30])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_cache_are_those_of_one_op_after_the_other(
    shape: Shape, window: int | None, with_norm: bool
) -> None:
    Case(shape, [1, 37, 0, 64, 65, 300, 16], torch.float32, with_norm=with_norm).check(window, 3e-5)


@pytest.mark.parametrize("window", [None, 200])
def test_long_contexts_are_split_and_only_the_last_part_adds_the_token(window: int | None) -> None:
    Case(Shape(8, 2, 64, 16), [1500, 3, 0, 700, 65], torch.float32, with_norm=True).check(window, 3e-5)


def test_the_new_token_is_attended_to_as_the_cache_rounds_it() -> None:
    case = Case(Shape(4, 2, 64, 16), [1, 20, 130], torch.float32, with_norm=False, is_fp8=True)
    # One row sees nothing but its own token, rounded to three bits after the first.
    case.check(None, 0.3 if DEVICE == "cpu" else 0.13)


@pytest.mark.gpu
@pytest.mark.parametrize("is_fp8", [False, True])
@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 64, 128])
def test_shapes_of_models_on_the_gpu(block_size: int, head_dim: int, group: int, is_fp8: bool) -> None:
    shape = Shape(2 * group, 2, head_dim, block_size)
    contexts = [1, 0, 17, 4096, 300, 32000, 0, 2047, 64]
    Case(shape, contexts, torch.bfloat16, with_norm=True, is_fp8=is_fp8).check(None, 0.13 if is_fp8 else 3e-2)
