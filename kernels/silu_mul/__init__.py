"""The gated activation of the feed-forward layer (Shazeer, "GLU Variants Improve Transformer", 2020).

Floor: one read of [n, 2i] and one write of [n, i].
"""

import torch

from kernels.dispatch import implementation


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, where gate_up [n, 2i] holds gate in its first half and up in its second; returns [n, i]."""
    result: torch.Tensor = implementation("silu_mul", gate_up).silu_mul(gate_up)
    return result
