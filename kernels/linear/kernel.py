"""Triton for few rows, torch's matrix product for many: `choice` decides."""

import functools

import torch
import triton

from kernels import pdl
from kernels.linear import Norm
from kernels.linear.choice import Tiles, choose
from kernels.linear.gemv import gemv_kernel
from kernels.linear.skinny import ROWS, skinny_kernel
from kernels.rms_norm import rms_norm
from kernels.silu_mul import silu_mul

_MAX_TILES = 1 << 16


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm | None
) -> torch.Tensor:
    """See `kernels.linear`."""
    tiles = _choose(x, len(weight))
    if tiles is not None and tiles.kernel == "gemv":
        return tiled_linear(x, weight, tiles, bias=bias, norm=norm)
    normed = x if norm is None else rms_norm(x, norm.weight, norm.eps)
    if tiles is None:
        return torch.nn.functional.linear(normed, weight, bias)
    return tiled_linear(normed, weight, tiles, bias=bias)


def linear_add(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """See `kernels.linear`."""
    tiles = _choose(x, len(weight))
    if tiles is None:
        # In place: torch would copy the residual first.
        return residual.addmm_(x, weight.t())
    return tiled_linear(x, weight, tiles, residual=residual)


def gate_up_silu(x: torch.Tensor, weight: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    """See `kernels.linear`."""
    tiles = _choose(x, len(weight) // 2, is_gated=True)
    if tiles is not None and tiles.kernel == "gemv":
        return tiled_linear(x, weight, tiles, norm=norm, is_gated=True)
    normed = x if norm is None else rms_norm(x, norm.weight, norm.eps)
    if tiles is None:
        return silu_mul(torch.nn.functional.linear(normed, weight))
    return tiled_linear(normed, weight, tiles, is_gated=True)


def _choose(x: torch.Tensor, n: int, *, is_gated: bool = False) -> Tiles | None:
    # In float32 the tensor cores would round, and the ordinary units need tiles of their own.
    if len(x) == 0 or x.dtype == torch.float32:
        return None
    return choose(len(x), n, x.shape[1], is_gated=is_gated)


def tiled_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    tiles: Tiles,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    norm: Norm | None = None,
    is_gated: bool = False,
) -> torch.Tensor:
    """Any of the three ops with given tiles, a norm only by gemv. Rows may lie apart; elements of a row must not."""
    m, k = x.shape
    n = weight.shape[0] // 2 if is_gated else weight.shape[0]
    if x.stride(1) != 1 or weight.stride(1) != 1 or (residual is not None and residual.stride(1) != 1):
        raise ValueError("the elements of a row must be adjacent")
    if m > (1 if tiles.kernel == "gemv" else ROWS.value):
        raise ValueError(f"{m} rows are too many for the {tiles.kernel} kernel")
    if norm is not None and tiles.kernel != "gemv":
        raise ValueError("only the gemv kernel norms its input")
    up = weight[n:] if is_gated else weight
    num_tiles = triton.cdiv(n, tiles.block_n)
    if tiles.split_k > 1 and num_tiles > _MAX_TILES:
        raise ValueError(f"a split has at most {_MAX_TILES} tiles, not {num_tiles}")
    out = torch.empty((m, n), dtype=x.dtype, device=x.device)
    extras = (x if bias is None else bias, x if residual is None else residual)
    flags = {"GATED": is_gated, "HAS_BIAS": bias is not None, "HAS_RESIDUAL": residual is not None}
    if tiles.kernel == "gemv":
        gemv_kernel[(num_tiles,)](
            x, weight, up, *extras, x if norm is None else norm.weight, out, weight.stride(0), n,
            0.0 if norm is None else norm.eps, K=k, **flags, HAS_NORM=norm is not None,
            BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k, num_warps=tiles.num_warps, **pdl.options(),
        )  # fmt: skip
        return out
    size = tiles.split_k * (2 if is_gated else 1) * tiles.block_n * ROWS.value
    # Never written without a split.
    partial = torch.empty(
        (num_tiles * size if tiles.split_k > 1 else 1,), dtype=torch.float32, device=x.device
    )
    per_split = triton.cdiv(triton.cdiv(k, tiles.block_k), tiles.split_k) * tiles.block_k
    skinny_kernel[(num_tiles, tiles.split_k)](
        x, weight, up, *extras, out, partial, _arrivals(x.device), x.stride(0), weight.stride(0),
        extras[1].stride(0), m, n,
        K=k, K_PER_SPLIT=per_split, SPLIT_K=tiles.split_k, **flags, BLOCK_N=tiles.block_n,
        BLOCK_K=tiles.block_k, STAGES=tiles.num_stages, num_warps=tiles.num_warps, **pdl.options(),
    )  # fmt: skip
    return out


@functools.cache
def _arrivals(device: torch.device) -> torch.Tensor:
    """Counters that every launch leaves at zero, for one stream at a time. Made before a graph records them."""
    return torch.zeros((_MAX_TILES,), dtype=torch.int32, device=device)
