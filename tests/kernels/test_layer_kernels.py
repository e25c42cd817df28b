"""Triton's norms, activation and rotation against the plain-torch references, in the interpreter or on the GPU."""

import pytest
import torch

from kernels.rms_norm import kernel as rms_norm_kernel
from kernels.rms_norm import reference as rms_norm_reference
from kernels.rope_kv_write import kernel as rope_kernel
from kernels.rope_kv_write import reference as rope_reference
from kernels.silu_mul import kernel as silu_mul_kernel
from kernels.silu_mul import reference as silu_mul_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter truncates where the GPU rounds to bfloat16.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
EPS = 1e-6


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Finished when this returns, since kernels read weights before the kernel ahead of them has finished."""
    made = torch.randn(shape, device=DEVICE).to(dtype)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return made


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """Equal up to one rounding of the dtype, which a sum in another order may turn."""
    assert got.dtype == wanted.dtype
    relative = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[got.dtype]
    torch.testing.assert_close(got, wanted, rtol=relative, atol=relative)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1024), (7, 320), (3, 5, 128), (0, 64), (2, 5120)])
def test_norms_are_those_of_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, residual = random(*shape, dtype=dtype) * 3, random(*shape, dtype=dtype)
    weight = random(shape[-1], dtype=dtype)
    assert_close(rms_norm_kernel.rms_norm(x, weight, EPS), rms_norm_reference.rms_norm(x, weight, EPS))
    before = x.clone()
    normed, total = rms_norm_kernel.add_rms_norm(x, residual, weight, EPS)
    wanted_normed, wanted_total = rms_norm_reference.add_rms_norm(x, residual, weight, EPS)
    assert_close(normed, wanted_normed)
    assert torch.equal(total, wanted_total)
    assert torch.equal(x, before)


def test_norm_of_rows_that_lie_apart() -> None:
    wide = random(6, 300)
    x, residual, weight = wide[::2, 10:106], wide[1::2, 100:196], random(96)
    normed, total = rms_norm_kernel.add_rms_norm(x, residual, weight, EPS)
    wanted_normed, wanted_total = rms_norm_reference.add_rms_norm(x, residual, weight, EPS)
    assert_close(normed, wanted_normed)
    assert torch.equal(total, wanted_total)
    assert normed.is_contiguous()


def test_norm_refuses_rows_whose_elements_lie_apart() -> None:
    with pytest.raises(ValueError, match="adjacent"):
        rms_norm_kernel.rms_norm(random(64, 8).t(), random(64), EPS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 192), (2, 2300), (0, 64), (1, 2, 64)])
def test_activation_is_that_of_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    gate_up = random(*shape, dtype=dtype) * 4
    assert_close(silu_mul_kernel.silu_mul(gate_up), silu_mul_reference.silu_mul(gate_up))


def test_activation_of_rows_that_lie_apart() -> None:
    gate_up = random(9, 400)[::3, 100:300]
    assert_close(silu_mul_kernel.silu_mul(gate_up), silu_mul_reference.silu_mul(gate_up))


class RopeCase:
    """Random q, k and v as views of one tensor, and two equal pairs of caches."""

    def __init__(self, tokens: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        self.block_size, num_blocks, num_positions = 16, 12, 500
        qkv = random(tokens, heads + 2 * kv_heads, head_dim, dtype=dtype)
        self.q, self.k, self.v = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)
        frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2, device=DEVICE) / head_dim)
        angles = torch.arange(num_positions, device=DEVICE)[:, None] * frequencies
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
        self.positions = torch.randint(0, num_positions, (tokens,), device=DEVICE)
        self.slots = torch.randperm(num_blocks * self.block_size, device=DEVICE)[:tokens]
        self.weights = (random(head_dim, dtype=dtype), random(head_dim, dtype=dtype))
        # One tensor for both caches, so that their strides are not those of contiguous ones.
        shape = (num_blocks, 2, kv_heads, self.block_size, head_dim)
        self.caches, self.wanted_caches = random(*shape, dtype=dtype).repeat(2, 1, 1, 1, 1, 1)

    def check(self, weights: tuple[torch.Tensor | None, torch.Tensor | None]) -> None:
        inputs = (self.q, self.k, self.v, self.cos_sin, self.positions, self.slots)
        turned = rope_kernel.rope_kv_write(*inputs, self.caches[:, 0], self.caches[:, 1], *weights, EPS)
        wanted = rope_reference.rope_kv_write(
            *inputs, self.wanted_caches[:, 0], self.wanted_caches[:, 1], *weights, EPS
        )
        assert_close(turned, wanted)
        assert_close(self.caches, self.wanted_caches)


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim"),
    [
        (5, 4, 2, 64),
        (3, 3, 1, 80),
        (4, 6, 2, 96),
        (2, 16, 8, 128),
        (1, 5, 5, 256),
        (66, 2, 1, 64),
        (0, 2, 1, 64),
    ],
)
def test_rotation_and_cache_write_are_those_of_the_reference(
    tokens: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, with_norm: bool
) -> None:
    case = RopeCase(tokens, heads, kv_heads, head_dim, dtype)
    case.check(case.weights if with_norm else (None, None))


@pytest.mark.parametrize("tokens", [1, 6])
def test_tokens_without_a_slot_write_nothing(tokens: int) -> None:
    case = RopeCase(tokens, 4, 2, 64, torch.float32)
    case.slots[::2] = -1
    before = case.caches.clone()
    case.check((None, None))
    changed = (case.caches != before).any(-1).any(2).any(1)
    assert int(changed.sum()) == tokens // 2
