"""All that stands between a layer's projections: rotation, the write of keys and values, and attention over pages.

The same as `kernels.rope_kv_write` and then `kernels.paged_attention`; where few rows decode, in one launch.
Floor: that of the attention, as what is rotated has just been written and lies in the second-level cache. Measured on
an H200 (`quire bench kernels`): 256 rows of 1,024 tokens 94 % of it, 64 rows 77 to 85 %; one row 6 to 7 us, where one
op after the other takes 9 to 10.
"""

from typing import NamedTuple

import torch

from kernels.dispatch import implementation
from kernels.kv_scales import KvScales
from kernels.paged_attention import AttentionPlan


class Rotation(NamedTuple):
    """Arguments of `rope_kv_write` that are not a layer's activations."""

    cos_sin: torch.Tensor
    """float32 [max_positions, d]."""
    positions: torch.Tensor
    """int64 [n]."""
    slots: torch.Tensor
    """int64 [n]: where each token's KV goes; of a row that decodes, the place of its context's last token."""
    q_weight: torch.Tensor | None = None
    """[d], of a norm of each query head; None for none, and so for keys."""
    k_weight: torch.Tensor | None = None
    eps: float = 0.0


def rope_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotation: Rotation,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    window: int | None = None,
    scales: KvScales | None = None,
) -> torch.Tensor:
    """Attention of the rotated queries over the cache, to which the rotated keys and the values were added.

    q [n, heads, d], k and v [n, kv_heads, d], maybe views of one tensor; the caches, plan, window and scales as in
    `paged_attention`. Returns [n, heads, d], contiguous, in q's dtype.
    """
    result: torch.Tensor = implementation("rope_attention", q).rope_attention(
        q, k, v, rotation, k_cache, v_cache, plan, scale, window, scales
    )
    return result
