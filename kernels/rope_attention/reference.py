"""Plain torch: one op after the other."""

import torch

from kernels.kv_scales import KvScales
from kernels.paged_attention import AttentionPlan
from kernels.paged_attention.reference import paged_attention
from kernels.rope_attention import Rotation
from kernels.rope_kv_write.reference import rope_kv_write


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
    """See `kernels.rope_attention`."""
    cos_sin, positions, slots, q_weight, k_weight, eps = rotation
    turned = rope_kv_write(
        q, k, v, cos_sin, positions, slots, k_cache, v_cache, q_weight, k_weight, eps, scales
    )
    return paged_attention(turned, k_cache, v_cache, plan, scale, window, scales)
