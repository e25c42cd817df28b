"""The ops of a layer but attention: products, norms, activation, rotation with the KV write."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from kernels.bench.cases import BFLOAT16_BYTES, Case, Sizes, num_copies
from kernels.linear import gate_up_silu, linear, linear_add
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.rope_kv_write import rope_kv_write
from kernels.silu_mul import silu_mul

_BLOCK_SIZE = 16
_MAX_POSITION = 4096


def layer_cases(sizes: Sizes, rows: int, device: str) -> Iterator[Case]:
    """Norms, activation, rotation with the KV write."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).bfloat16()

    x, residual, weight = random(rows, sizes.hidden), random(rows, sizes.hidden), random(sizes.hidden)
    elements = rows * sizes.hidden
    yield Case("rms_norm", rows, 2 * elements * BFLOAT16_BYTES, 0, [lambda: rms_norm(x, weight, 1e-6)])
    yield Case(
        *("add_rms_norm", rows, 4 * elements * BFLOAT16_BYTES, 0),
        [lambda: add_rms_norm(x, residual, weight, 1e-6)],
    )
    gate_up = random(rows, 2 * sizes.inner)
    yield Case("silu_mul", rows, 3 * rows * sizes.inner * BFLOAT16_BYTES, 0, [lambda: silu_mul(gate_up)])
    heads = [sizes.heads, sizes.kv_heads, sizes.kv_heads]
    q, k, v = torch.split(random(rows, sum(heads), sizes.head_dim), heads, dim=1)
    caches = random(2, rows + 1, sizes.kv_heads, _BLOCK_SIZE, sizes.head_dim)
    cos_sin = torch.randn(_MAX_POSITION, sizes.head_dim, device=device)
    positions = torch.randint(0, _MAX_POSITION, (rows,), device=device)
    slots = torch.randperm(_BLOCK_SIZE * rows, device=device)[:rows]
    norm = random(sizes.head_dim) if sizes.has_qk_norm else None
    yield Case(
        "rope_kv_write", rows, rows * (2 * sum(heads) * BFLOAT16_BYTES + 4) * sizes.head_dim, 0,
        [lambda: rope_kv_write(q, k, v, cos_sin, positions, slots, caches[0], caches[1], norm, norm, 1e-6)],
    )  # fmt: skip


def product_cases(sizes: Sizes, rows: int, device: str) -> Iterator[Case]:
    """The five products of a decoder as it calls them: activation and residual fused where they are."""
    for name, (n, k) in sizes.products().items():
        weight_bytes = n * k * BFLOAT16_BYTES
        copies = num_copies(weight_bytes) if device == "cuda" else 1
        x = torch.randn(rows, k, device=device).bfloat16()
        residual = torch.randn(rows, n, device=device).bfloat16() if name in ("output", "down") else None
        weights = [torch.randn(n, k, device=device, dtype=torch.bfloat16) for _ in range(copies)]
        out = n // 2 if name == "gate_up" else n
        moved = rows * (k + out * (1 if residual is None else 2)) * BFLOAT16_BYTES
        calls = [_product(name, x, weight, residual) for weight in weights]
        yield Case(f"product: {name}", rows, weight_bytes + moved, 2 * rows * n * k, calls, f"{n}x{k}")


def _product(
    name: str, x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None
) -> Callable[[], object]:
    if residual is not None:
        return partial(linear_add, x, weight, residual)
    return partial(gate_up_silu if name == "gate_up" else linear, x, weight)
