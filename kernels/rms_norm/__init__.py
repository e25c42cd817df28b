"""Root-mean-square normalisation (Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019).

Floor: one read and one write of the activations (two of each with the residual); the weight is read once. Measured on
an H200: 8,192 rows of 1,024 71 % of a copy's rate, of 4,096 all of it; 256 rows 14 and 44 %, 2 us.
"""

import torch

from kernels.dispatch import implementation


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) * weight over the last dimension, computed in float32.

    x [..., d], weight [d], one dtype; returns [..., d] in that dtype.
    """
    result: torch.Tensor = implementation("rms_norm", x).rms_norm(x, weight, eps)
    return result


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual stream's step: returns (rms_norm(x + residual), x + residual), both [..., d]."""
    result: tuple[torch.Tensor, torch.Tensor] = implementation("rms_norm", x).add_rms_norm(
        x, residual, weight, eps
    )
    return result
