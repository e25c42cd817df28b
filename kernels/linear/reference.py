"""Plain torch."""

import torch

from kernels.silu_mul.reference import silu_mul


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """See `kernels.linear`."""
    return torch.nn.functional.linear(x, weight, bias)


def linear_add(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """See `kernels.linear`."""
    return torch.nn.functional.linear(x, weight) + residual


def gate_up_silu(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """See `kernels.linear`."""
    return silu_mul(torch.nn.functional.linear(x, weight))
