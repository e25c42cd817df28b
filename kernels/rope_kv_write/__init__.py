"""Per-head norm of queries and keys, rotary position embedding, and the write of keys and values to their slots.

Rotary embedding: Su et al., "RoFormer", 2021, in the half-split form of Hugging Face checkpoints.
Floor: one read of q, k, v and one write of q and of the two cache slots per token. Measured on an H200: 8,192 tokens
75 to 85 % of a copy's rate, 256 39 to 55 %, fewer 2 us (`benchmarks.decode_profile`, `quire bench kernels`).
"""

import torch

from kernels.dispatch import implementation
from kernels.kv_scales import KvScales


def rope_kv_write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    scales: KvScales | None = None,
) -> torch.Tensor:
    """Rotate q and k at their positions, write k and v to the cache, return the rotated q.

    q [n, heads, d], k and v [n, kv_heads, d]; cos_sin [max_positions, d] in float32: d/2 cosines, then d/2
    sines; positions and slots [n] int64, slot = block * block_size + offset, or below 0 for a token that only
    fills the batch, whose k and v go nowhere; k_cache and v_cache [num_blocks, kv_heads, block_size, d], written
    in place, in q's dtype or, with `scales`, in `kernels.kv_scales.FP8`. q_weight and k_weight [d]: RMS-normalise
    each head first (Qwen3). q, k and v may be views of one tensor. Returns [n, heads, d] in q's dtype, contiguous.
    """
    result: torch.Tensor = implementation("rope_kv_write", q).rope_kv_write(
        q, k, v, cos_sin, positions, slots, k_cache, v_cache, q_weight, k_weight, eps, scales
    )
    return result
