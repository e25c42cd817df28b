"""x · weightᵀ for few rows, where the weights' way from memory is the cost, and two forms that do a step more.

Floor: one read of the weights. Many rows are a matter of arithmetic and go to torch's own matrix product.
"""

import torch

from kernels.dispatch import implementation


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x · weightᵀ + bias. x [m, k], weight [n, k], bias [n], one dtype; returns [m, n] in that dtype."""
    result: torch.Tensor = implementation("linear", x).linear(x, weight, bias)
    return result


def linear_add(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """x · weightᵀ + residual. x [m, k], weight [n, k], residual [m, n]; returns [m, n]."""
    result: torch.Tensor = implementation("linear", x).linear_add(x, weight, residual)
    return result


def gate_up_silu(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """silu(x · gateᵀ) * (x · upᵀ), where weight [2i, k] is gate in its first half and up in its second.

    x [m, k]; returns [m, i]. The same as `silu_mul(linear(x, weight))` with fewer roundings.
    """
    result: torch.Tensor = implementation("linear", x).gate_up_silu(x, weight)
    return result
