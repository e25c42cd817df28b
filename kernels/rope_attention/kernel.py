"""Triton: one launch for few rows that decode and share nothing, else one op after the other."""

import torch

from kernels.kv_scales import KvScales
from kernels.paged_attention import AttentionPlan
from kernels.paged_attention.kernel import paged_attention
from kernels.rope_attention import Rotation
from kernels.rope_attention.decode import rope_decode_attention
from kernels.rope_kv_write.kernel import rope_kv_write

_FEW_ROWS = 16
"""So many rows, a launch less is worth more than queries rotated again for every part of a context."""


def rope_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotation: Rotation,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    window: int | None,
    scales: KvScales | None,
) -> torch.Tensor:
    """See `kernels.rope_attention`. Tokens may lie apart; elements of a head must not."""
    work = plan.decode
    if plan.chunks is None and work is not None and work.shared is None and len(q) <= _FEW_ROWS:
        return rope_decode_attention(q, k, v, rotation, k_cache, v_cache, plan, work, scale, window, scales)
    cos_sin, positions, slots, q_weight, k_weight, eps = rotation
    turned = rope_kv_write(
        q, k, v, cos_sin, positions, slots, k_cache, v_cache, q_weight, k_weight, eps, scales
    )
    return paged_attention(turned, k_cache, v_cache, plan, scale, window, scales)
