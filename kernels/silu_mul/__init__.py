"""The gated activation of the feed-forward layer (Shazeer, "GLU Variants Improve Transformer", 2020).

Floor: one read of [n, 2i] and one write of [n, i]. Measured on an H200: 8,192 rows 95 % of a copy's rate and more, 256
rows 53 % (i 3,072) and all of it (i 14,336).
"""

import torch

from kernels.dispatch import implementation


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, where gate_up [n, 2i] holds gate in its first half and up in its second; returns [n, i]."""
    result: torch.Tensor = implementation("silu_mul", gate_up).silu_mul(gate_up)
    return result
