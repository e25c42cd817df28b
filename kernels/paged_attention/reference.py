"""Plain torch: row by row, each row's pages gathered once."""

import torch
from torch.nn.functional import scaled_dot_product_attention

from kernels.kv_scales import KvScales
from kernels.paged_attention import AttentionPlan, Chunks, SharedPrefixes


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
    """See `kernels.paged_attention`; there is nothing to prepare, and what is shared is read by every row."""
    return AttentionPlan(block_tables, context_lens, num_decoding, chunks, None)


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    plan: AttentionPlan,
    scale: float,
    window: int | None,
    scales: KvScales | None = None,
) -> torch.Tensor:
    """See `kernels.paged_attention`."""
    block_size = k_cache.shape[2]
    k_scale, v_scale = scales or (None, None)
    output = torch.zeros_like(q)
    query_lens = [1] * plan.num_decoding + (
        plan.chunks.query_lens.tolist() if plan.chunks is not None else []
    )
    start = 0
    for row, (query_len, context_len) in enumerate(zip(query_lens, plan.context_lens.tolist(), strict=True)):
        if context_len == 0:
            start += query_len
            continue
        # Blocks that the window has left behind for every query of the row are not read.
        first = 0 if window is None else max(0, context_len - query_len - window + 1) // block_size
        blocks = plan.block_tables[row, first : -(-context_len // block_size)]
        offset = first * block_size
        keys = _gather(k_cache, blocks, context_len - offset, q.dtype, k_scale)
        values = _gather(v_cache, blocks, context_len - offset, q.dtype, v_scale)
        end = start + query_len
        output[start:end] = _attend(q[start:end], keys, values, scale, window)
        start = end
    return output


def _gather(
    cache: torch.Tensor, blocks: torch.Tensor, length: int, dtype: torch.dtype, scale: torch.Tensor | None
) -> torch.Tensor:
    """The tokens of some blocks, [kv_heads, length, d]."""
    pages = cache[blocks].to(dtype)  # [blocks, kv_heads, block_size, d]
    if scale is not None:
        pages = pages * scale.to(dtype)[:, None, None]
    return pages.transpose(0, 1).reshape(cache.shape[1], -1, cache.shape[3])[:, :length]


def _attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, window: int | None
) -> torch.Tensor:
    """q [n, heads, d] are the last n of the tokens of keys and values [kv_heads, length, d]."""
    query_len, heads, head_dim = q.shape
    kv_heads, length = keys.shape[:2]
    if query_len == 1 and (window is None or window >= length):
        grouped = q.view(kv_heads, heads // kv_heads, head_dim)
        weights = torch.softmax((grouped @ keys.transpose(1, 2)).float() * scale, dim=-1).to(q.dtype)
        return (weights @ values).view(1, heads, head_dim)
    group = heads // kv_heads
    queries = q.transpose(0, 1)[None]
    spread_keys = keys.repeat_interleave(group, dim=0)[None]
    spread_values = values.repeat_interleave(group, dim=0)[None]
    query_at = torch.arange(length - query_len, length, device=q.device)[:, None]
    key_at = torch.arange(length, device=q.device)[None, :]
    visible = key_at <= query_at
    if window is not None:
        visible &= key_at > query_at - window
    out = scaled_dot_product_attention(queries, spread_keys, spread_values, attn_mask=visible, scale=scale)
    return out[0].transpose(0, 1)
