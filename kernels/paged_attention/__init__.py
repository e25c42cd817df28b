"""Causal attention of query tokens over keys and values in pages (Kwon et al., "PagedAttention", SOSP 2023).

One op for every mixture of prefill chunks and decode rows. Floor of decode: one read of each row's K and V.
Floor of prefill: 4 * heads * d FLOP per (query, visible key) pair.
"""

import torch

from kernels.dispatch import implementation


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_tables: torch.Tensor,
    query_lens: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float,
    window: int | None = None,
) -> torch.Tensor:
    """Attention of each row's last `query_lens[i]` of `context_lens[i]` tokens over those up to itself.

    q [sum(query_lens), heads, d], row after row; caches [num_blocks, kv_heads, block_size, d], which already
    hold the queries' own keys and values; block_tables [rows, max_blocks], query_lens and context_lens
    [rows] integers. heads is a multiple of kv_heads. `window`: a token sees itself and the window - 1 before
    it. Returns the shape and dtype of q.
    """
    result: torch.Tensor = implementation("paged_attention", q).paged_attention(
        q, k_cache, v_cache, block_tables, query_lens, context_lens, scale, window
    )
    return result
