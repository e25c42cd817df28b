"""Norms, activation, rotation and log-probabilities against float64, on fresh random inputs."""

import pytest
import torch

from kernels.logprobs import logprobs
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.rope_kv_write import rope_kv_write
from kernels.silu_mul import silu_mul

EPS = 1e-6


def norm64(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x.double()
    return wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + EPS) * weight.double()


@pytest.mark.parametrize("shape", [(1, 64), (7, 320), (3, 5, 128)])
def test_rms_norm_with_and_without_residual(shape: tuple[int, ...]) -> None:
    x, residual, weight = torch.randn(shape) * 3, torch.randn(shape), torch.randn(shape[-1])
    assert torch.allclose(rms_norm(x, weight, EPS).double(), norm64(x, weight), atol=1e-5)
    normed, total = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, x + residual)
    assert torch.allclose(normed.double(), norm64(x + residual, weight), atol=1e-5)


def test_silu_mul() -> None:
    gate, up = torch.randn(2, 5, 96)
    wanted = gate.double() / (1 + torch.exp(-gate.double())) * up.double()
    assert torch.allclose(silu_mul(torch.cat((gate, up), dim=-1)).double(), wanted, atol=1e-6)


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 64), (3, 1, 80), (8, 8, 128)])
def test_queries_and_keys_turn_by_their_positions_and_kv_lands_in_its_slots(
    heads: int, kv_heads: int, head_dim: int, with_norm: bool
) -> None:
    n, block_size, num_blocks = 9, 16, 6
    q, k, v = (
        torch.randn(n, heads, head_dim),
        torch.randn(n, kv_heads, head_dim),
        torch.randn(n, kv_heads, head_dim),
    )
    positions = torch.randint(0, 500, (n,))
    slots = torch.randperm(num_blocks * block_size)[:n]
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2).double() / head_dim)
    angles = torch.arange(500).double()[:, None] * frequencies
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1).float()
    weights = (torch.randn(head_dim), torch.randn(head_dim)) if with_norm else (None, None)
    k_cache = torch.zeros(num_blocks, kv_heads, block_size, head_dim)
    v_cache = torch.zeros_like(k_cache)
    turned = rope_kv_write(q, k, v, cos_sin, positions, slots, k_cache, v_cache, *weights, EPS)

    def rotated(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        wide = x.double() if weight is None else norm64(x, weight)
        # A pair (x[i], x[i + d/2]) as a complex number, times a unit one.
        pairs = (
            torch.complex(*wide.chunk(2, dim=-1))
            * torch.polar(torch.ones_like(angles), angles)[positions][:, None]
        )
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    assert torch.allclose(turned.double(), rotated(q, weights[0]), atol=1e-4)
    blocks, offsets = slots // block_size, slots % block_size
    assert torch.allclose(k_cache[blocks, :, offsets].double(), rotated(k, weights[1]), atol=1e-4)
    assert torch.equal(v_cache[blocks, :, offsets], v)
    assert int((k_cache != 0).any(-1).any(1).sum()) == n  # and nowhere else


def test_logprobs_of_the_chosen_and_of_the_likeliest() -> None:
    logits = torch.randn(4, 50) * 5
    chosen = torch.tensor([3, 0, 49, 7])
    values, top_ids, tops = logprobs(logits, chosen, 5)
    exact = torch.log_softmax(logits.double(), dim=-1)
    assert torch.allclose(values.double(), exact[torch.arange(4), chosen], atol=1e-5)
    assert torch.equal(top_ids, exact.topk(5).indices)
    assert torch.allclose(tops.double(), exact.topk(5).values, atol=1e-5)
