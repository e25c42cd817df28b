"""A cache of 8 bits: written rounded once, read as what it holds times its heads' scales."""

from types import ModuleType

import pytest
import torch

from kernels.kv_scales import FP8, FP8_MAX, KvScales, scale_of, stored
from kernels.paged_attention import kernel as attention_kernel
from kernels.paged_attention import reference as attention_reference
from kernels.rope_kv_write import kernel as rope_kernel
from kernels.rope_kv_write import reference as rope_reference
from tests.support.attention_batch import AttentionBatch, Shape, attention_batch, planned

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALLEST = 2.0**-9


def head_scales(num_heads: int) -> KvScales:
    """Of heads whose sizes differ by factors of four."""
    keys = 4.0 ** (torch.arange(num_heads, device=DEVICE) % 5 - 4)
    return KvScales(keys, keys.flip(0) * 2)


def test_a_scale_is_the_least_power_of_two_with_room_for_the_largest_number() -> None:
    largest = torch.tensor([448.0, 449.0, 1.0, 0.0])
    scales = scale_of(largest)
    assert scales[:3].tolist() == [1.0, 2.0, 2.0**-8]
    assert scales[3] > 0
    assert (largest / scales <= FP8_MAX).all()


def test_numbers_out_of_range_become_its_end() -> None:
    x = torch.tensor([1e9, -1e9, 3.0, 0.0])[None, None, :]
    found = stored(x, torch.tensor([0.5])).float() * 0.5
    assert found.flatten().tolist() == [FP8_MAX / 2, -FP8_MAX / 2, 3.0, 0.0]


def in_8_bits(batch: AttentionBatch, scales: KvScales) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch's caches, in the sizes that the scales are for, as they lie in memory."""
    caches = []
    for cache, scale in zip((batch.k_cache, batch.v_cache), scales, strict=True):
        # Where nobody may look stays not a number.
        sized = cache.float().transpose(1, 2) * (scale * 16)[:, None]
        caches.append(stored(sized.flatten(0, 1), scale).view(sized.shape).transpose(1, 2).contiguous())
    return caches[0], caches[1]


def widened(cache: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (cache.float() * scale[:, None, None]).to(dtype)


def check_attention(
    implementation: ModuleType,
    shape: Shape,
    window: int | None,
    dtype: torch.dtype,
    tolerance: float,
    decoding: tuple[int, ...] = (37, 0, 300),
) -> None:
    chunks = [(20, 70), (64, 64), (3, 40)]
    batch = attention_batch(shape, list(decoding), chunks, window=window, dtype=dtype, device=DEVICE)
    scales = head_scales(shape.kv_heads)
    k_cache, v_cache = in_8_bits(batch, scales)
    # Queries as small as keys are large, so that no token has all of the weight.
    batch.q = batch.q / (scales.keys.repeat_interleave(shape.heads // shape.kv_heads)[:, None] * 16)
    batch.q = batch.q.to(dtype)
    rows = (batch.block_tables, batch.context_lens, batch.num_decoding, batch.chunks)
    sizes = (shape.heads, shape.kv_heads, shape.head_dim)
    plan = planned(implementation, *rows, *sizes)
    found = implementation.paged_attention(batch.q, k_cache, v_cache, plan, batch.scale, window, scales)
    wanted = attention_reference.paged_attention(
        batch.q.double(), widened(k_cache, scales.keys, torch.float64), widened(v_cache, scales.values, torch.float64),
        attention_reference.plan_attention(*rows, *sizes), batch.scale, window,
    )  # fmt: skip
    has_context = torch.isfinite(batch.wanted).all(dim=(1, 2))
    size = scales.values.repeat_interleave(shape.heads // shape.kv_heads)[:, None] * 16
    assert (((found.double() - wanted) / size)[has_context]).abs().max() <= tolerance
    assert found.dtype == dtype


@pytest.mark.parametrize(
    "implementation", [attention_reference, attention_kernel], ids=["reference", "kernel"]
)
@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("shape", [Shape(4, 2, 80, 16), Shape(16, 2, 128, 64), Shape(5, 5, 64, 16)], ids=str)
def test_attention_reads_the_cache_times_its_scales(
    shape: Shape, window: int | None, implementation: ModuleType
) -> None:
    check_attention(implementation, shape, window, torch.float32, 2e-5)


@pytest.mark.usefixtures("order")
def test_scales_count_once_for_each_row_however_the_rows_are_gone_about() -> None:
    lengths = (37, 0, 300, 5, 64, 130)
    check_attention(attention_kernel, Shape(4, 2, 64, 16), None, torch.float32, 2e-5, decoding=lengths)


@pytest.mark.gpu
@pytest.mark.parametrize("group", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("block_size", [16, 64, 128])
def test_attention_of_models_on_the_gpu(block_size: int, head_dim: int, group: int) -> None:
    shape = Shape(2 * group, 2, head_dim, block_size)
    check_attention(attention_kernel, shape, None, torch.bfloat16, 2e-2, decoding=(1, 0, 4096, 8000, 63))


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 64), (3, 3, 80), (16, 8, 128)])
def test_keys_and_values_are_rounded_once_by_their_heads_scale(
    heads: int, kv_heads: int, head_dim: int, with_norm: bool
) -> None:
    tokens, num_blocks, block_size = 7, 4, 16
    scales = head_scales(kv_heads)
    size = scales.keys[:, None] * 30
    q = torch.randn(tokens, heads, head_dim, device=DEVICE)
    k, v = torch.randn(2, tokens, kv_heads, head_dim, device=DEVICE) * size
    angles = torch.rand(50, head_dim // 2, device=DEVICE) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    positions = torch.randint(0, 50, (tokens,), device=DEVICE)
    slots = torch.randperm(num_blocks * block_size, device=DEVICE)[:tokens]
    slots[2] = -1
    norms = (
        (torch.rand(head_dim, device=DEVICE), torch.rand(head_dim, device=DEVICE))
        if with_norm
        else (None, None)
    )
    shape = (2, num_blocks, kv_heads, block_size, head_dim)
    caches, wanted = torch.zeros(2, *shape, dtype=torch.uint8, device=DEVICE).view(FP8)
    inputs = (q, k, v, cos_sin, positions, slots)
    turned = rope_kernel.rope_kv_write(*inputs, caches[0], caches[1], norms[0], norms[1], 1e-6, scales)
    wanted_turned = rope_reference.rope_kv_write(
        *inputs, wanted[0], wanted[1], norms[0], norms[1], 1e-6, scales
    )
    torch.testing.assert_close(turned, wanted_turned, rtol=1e-5, atol=1e-5)
    found, wanted = caches.float(), wanted.float()
    if DEVICE == "cpu":
        # Triton's interpreter forgets the carry of what rounds up to a power of two.
        found = torch.where(found * 2 == wanted, wanted, found)
    # A sum in another order may turn a rounding: one step of the last bit.
    torch.testing.assert_close(found, wanted, rtol=0.126, atol=SMALLEST)
    assert (found == wanted).float().mean() > 0.99
    assert int((wanted != 0).any(-1).any(2).sum()) == 2 * (tokens - 1)
