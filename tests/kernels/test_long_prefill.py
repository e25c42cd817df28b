"""Attention of long chunks on Hopper: what an emulation of its asynchronous parts and the GPU itself make of it."""

from unittest import mock

import pytest
import torch

from kernels import pdl
from kernels.paged_attention import AttentionPlan, long_prefill
from tests.support.attention_batch import Shape, assert_attends, attention_batch
from tests.support.gluon_interpreter import ORDERS, Interpreted

CHUNKS = [(300, 300), (1, 5), (130, 471), (128, 128), (129, 640)]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def attend(
    shape: Shape,
    decoding: list[int],
    chunks: list[tuple[int, int]],
    window: int | None,
    dtype: torch.dtype,
    device: str,
) -> None:
    batch = attention_batch(shape, decoding, chunks, window=window, dtype=dtype, device=device)
    assert batch.chunks is not None
    plan = AttentionPlan(batch.block_tables, batch.context_lens, batch.num_decoding, batch.chunks, None)
    out = batch.wanted.to(dtype)
    out[len(decoding) :] = float("nan")
    long_prefill.long_prefill_attention(
        batch.q, batch.k_cache, batch.v_cache, plan, batch.chunks, out, batch.scale, window
    )
    assert_attends(out, batch, 3e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(
    ("shape", "window"),
    [
        (Shape(2, 1, 64, 16), None),
        (Shape(2, 2, 80, 64), None),
        (Shape(1, 1, 128, 128), 100),
        (Shape(1, 1, 64, 32), 1),
    ],
    ids=str,
)
def test_whenever_copies_and_products_are_done(
    shape: Shape, window: int | None, order: tuple[bool, bool]
) -> None:
    late_copies, late_products = order
    kernel = Interpreted(
        long_prefill._long_prefill_kernel, long_prefill, late_copies=late_copies, late_products=late_products
    )
    options = {"PDL": False, "launch_pdl": False}
    with (
        mock.patch.object(long_prefill, "_long_prefill_kernel", kernel),
        mock.patch.object(pdl, "options", return_value=options),
    ):
        attend(shape, [3, 0], [*CHUNKS, (7, 0)], window, torch.float32, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("head_dim", "group"), [(64, 4), (80, 1), (96, 2), (128, 2), (128, 4), (128, 8)])
@pytest.mark.parametrize("block_size", [16, 32, 128])
def test_shapes_of_models_on_the_gpu(
    block_size: int, head_dim: int, group: int, window: int | None, dtype: torch.dtype
) -> None:
    attend(Shape(2 * group, 2, head_dim, block_size), [70, 0], [*CHUNKS, (2048, 5000)], window, dtype, "cuda")
