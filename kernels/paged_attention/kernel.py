"""Triton: decoding rows and chunks of prompts by a kernel each, into one output."""

import torch

from kernels.kv_scales import KvScales
from kernels.paged_attention import AttentionPlan, Chunks, SharedPrefixes
from kernels.paged_attention.decode import decode_attention
from kernels.paged_attention.plan import plan_decode
from kernels.paged_attention.prefill import prefill_attention
from kernels.paged_attention.shared import shared_attention


def plan_attention(
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    num_decoding: int,
    chunks: Chunks | None,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    prefixes: SharedPrefixes | None = None,
) -> AttentionPlan:
    """See `kernels.paged_attention`."""
    decode = None
    if num_decoding:
        decode = plan_decode(context_lens, num_decoding, num_heads, num_kv_heads, head_dim, prefixes=prefixes)
    return AttentionPlan(block_tables, context_lens, num_decoding, chunks, decode)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    window: int | None,
    scales: KvScales | None = None,
) -> torch.Tensor:
    """See `kernels.paged_attention`. Tokens may lie apart; heads of a token, and elements, must not."""
    if q.stride(2) != 1 or q.stride(1) != q.shape[2] or k_cache.stride(3) != 1 or v_cache.stride(3) != 1:
        raise ValueError("the heads of a query and the elements of a head must be adjacent")
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if plan.decode is not None:
        if plan.decode.shared is not None:
            if window is not None:
                raise ValueError("a window does not end where what rows share does")
            shared_attention(
                q, k_cache, v_cache, plan.block_tables, plan.context_lens, plan.decode.shared, scale, scales
            )
        decode_attention(
            q, k_cache, v_cache, plan.block_tables, plan.context_lens, plan.decode, out, scale, window, scales
        )
    if plan.chunks is not None:
        prefill_attention(q, k_cache, v_cache, plan, plan.chunks, out, scale, window, scales)
    return out
