"""Plain torch."""

import torch

from kernels.linear import Norm
from kernels.rms_norm.reference import rms_norm
from kernels.silu_mul.reference import silu_mul


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, norm: Norm | None = None
) -> torch.Tensor:
    """See `kernels.linear`."""
    return torch.nn.functional.linear(_normed(x, norm), weight, bias)


def linear_add(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """See `kernels.linear`."""
    return torch.nn.functional.linear(x, weight) + residual


def gate_up_silu(x: torch.Tensor, weight: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
    """See `kernels.linear`."""
    return silu_mul(torch.nn.functional.linear(_normed(x, norm), weight))


def _normed(x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    return x if norm is None else rms_norm(x, norm.weight, norm.eps)
