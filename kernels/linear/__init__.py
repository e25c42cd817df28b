"""x · weightᵀ for few rows, where the weights' way from memory is the cost, and forms that do a step more.

Floor: one read of the weights. Many rows are a matter of arithmetic and go to torch's own matrix product. Measured on
an H200 (`quire bench kernels`): one row of llama-8b 82 to 98 % of it by product, of qwen3-0.6b, whose products take 2
to 5 us, 44 to 66 %; 64 rows 65 to 86 and 26 to 56 %; 256 rows 67 to 78 % of the arithmetic (cuBLAS) and 24 to 48 %.
"""

from typing import NamedTuple

import torch

from kernels.dispatch import implementation


class Norm(NamedTuple):
    """The RMS norm of a product's input (see `kernels.rms_norm`): weight [k], and what is added to the mean square."""

    weight: torch.Tensor
    eps: float


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, norm: Norm | None = None
) -> torch.Tensor:
    """norm(x) · weightᵀ + bias. x [m, k], weight [n, k], bias [n], one dtype; returns [m, n] in that dtype."""
    result: torch.Tensor = implementation("linear", x).linear(x, weight, bias, norm)
    return result


def linear_add(x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """x · weightᵀ + residual. x [m, k], weight [n, k], residual [m, n]; returns [m, n], maybe in residual's place."""
    result: torch.Tensor = implementation("linear", x).linear_add(x, weight, residual)
    return result


def gate_up_silu(x: torch.Tensor, weight: torch.Tensor, norm: Norm | None = None) -> torch.Tensor:
    """silu(norm(x) · gateᵀ) * (norm(x) · upᵀ), where weight [2i, k] is gate in its first half and up in its second.

    x [m, k]; returns [m, i]. The same as `silu_mul(linear(x, weight, norm=norm))` with fewer roundings.
    """
    result: torch.Tensor = implementation("linear", x).gate_up_silu(x, weight, norm)
    return result
