"""Plain torch."""

import torch

from kernels.kv_scales import KvScales, stored
from kernels.rms_norm.reference import rms_norm


def rope_kv_write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
    scales: KvScales | None = None,
) -> torch.Tensor:
    """See `kernels.rope_kv_write`."""
    if q_weight is not None and k_weight is not None:
        q, k = rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)
    cos, sin = cos_sin[positions].to(q.dtype)[:, None, :].chunk(2, dim=-1)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    if scales is not None:
        k, v = stored(k, scales.keys), stored(v, scales.values)
    block_size = k_cache.shape[2]
    written = slots >= 0
    blocks, offsets = slots[written] // block_size, slots[written] % block_size
    k_cache[blocks, :, offsets] = k[written].to(k_cache.dtype)
    v_cache[blocks, :, offsets] = v[written].to(v_cache.dtype)
    return q


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
