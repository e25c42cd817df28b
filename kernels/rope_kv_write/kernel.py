# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: one launch; a program does a few heads of one token, all of them queries, keys or values.

Products are rounded to the tensors' dtype one by one, as the reference rounds them.
"""

import torch
import triton
import triton.language as tl

from kernels import pdl
from kernels.kv_scales import FP8_MAX, KvScales

_FP8_MAX = tl.constexpr(FP8_MAX)


@triton.jit
def _normalised(first, second, weight_ptr, columns, mask, eps, HALF: tl.constexpr):
    """RMS norm over heads given as two halves [heads, half]."""
    dtype = first.dtype
    wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
    squares = tl.sum(wide_first * wide_first + wide_second * wide_second, axis=1)
    scale = tl.rsqrt(squares / (2 * HALF) + eps)[:, None]
    weight_first = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)[None, :]
    weight_second = tl.load(weight_ptr + HALF + columns, mask=mask, other=0.0).to(tl.float32)[None, :]
    first = ((wide_first * scale).to(dtype).to(tl.float32) * weight_first).to(dtype)
    second = ((wide_second * scale).to(dtype).to(tl.float32) * weight_second).to(dtype)
    return first, second


@triton.jit
def _rotated(first, second, cos_sin_ptr, position, columns, mask, HALF: tl.constexpr):
    dtype = first.dtype
    row_ptr = cos_sin_ptr + position * (2 * HALF) + columns
    cos = tl.load(row_ptr, mask=mask, other=0.0).to(dtype).to(tl.float32)[None, :]
    sin = tl.load(row_ptr + HALF, mask=mask, other=0.0).to(dtype).to(tl.float32)[None, :]
    first, second = first.to(tl.float32), second.to(tl.float32)
    turned_first = (first * cos).to(dtype).to(tl.float32) - (second * sin).to(dtype).to(tl.float32)
    turned_second = (second * cos).to(dtype).to(tl.float32) + (first * sin).to(dtype).to(tl.float32)
    return turned_first.to(dtype), turned_second.to(dtype)


@triton.jit
def _load_heads(ptr, token, token_stride, head_stride, heads, columns, mask, HALF: tl.constexpr):
    at = ptr + token * token_stride + heads[:, None] * head_stride + columns[None, :]
    return tl.load(at, mask=mask, other=0.0), tl.load(at + HALF, mask=mask, other=0.0)


@triton.jit
def _stored(first, second, scales_ptr, heads, NUM_KV_HEADS: tl.constexpr, cache_ptr):
    """The halves of heads in the cache's 8 bits."""
    scale = tl.load(scales_ptr + heads, mask=heads < NUM_KV_HEADS, other=1.0)[:, None]
    first = tl.clamp(first.to(tl.float32) / scale, -_FP8_MAX, _FP8_MAX)
    second = tl.clamp(second.to(tl.float32) / scale, -_FP8_MAX, _FP8_MAX)
    return first.to(cache_ptr.dtype.element_ty), second.to(cache_ptr.dtype.element_ty)


@triton.jit
def _store_heads(at, head_stride, heads, columns, mask, first, second, HALF: tl.constexpr):
    at = at + heads[:, None] * head_stride + columns[None, :]
    tl.store(at, first, mask=mask)
    tl.store(at + HALF, second, mask=mask)


@triton.jit
def _rope_kv_write_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, cos_sin_ptr, positions_ptr, slots_ptr, k_cache_ptr, v_cache_ptr,
    q_weight_ptr, k_weight_ptr, eps, q_token_stride, q_head_stride, k_token_stride, k_head_stride,
    v_token_stride, v_head_stride, k_block_stride, k_cache_head_stride, k_slot_stride, v_block_stride,
    v_cache_head_stride, v_slot_stride, k_scales_ptr, v_scales_ptr, NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr, HAS_NORM: tl.constexpr, HAS_SCALES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    columns = tl.arange(0, HALF_BLOCK)
    column_mask = columns < HALF
    Q_GROUPS: tl.constexpr = (NUM_HEADS + HEADS - 1) // HEADS
    KV_GROUPS: tl.constexpr = (NUM_KV_HEADS + HEADS - 1) // HEADS
    pdl.wait(PDL)
    if group < Q_GROUPS:
        heads = group * HEADS + tl.arange(0, HEADS)
        mask = (heads < NUM_HEADS)[:, None] & column_mask[None, :]
        first, second = _load_heads(q_ptr, token, q_token_stride, q_head_stride, heads, columns, mask, HALF)
        if HAS_NORM:
            first, second = _normalised(first, second, q_weight_ptr, columns, column_mask, eps, HALF)
        position = tl.load(positions_ptr + token)
        first, second = _rotated(first, second, cos_sin_ptr, position, columns, column_mask, HALF)
        at = out_ptr + token * (NUM_HEADS * 2 * HALF)
        _store_heads(at, 2 * HALF, heads, columns, mask, first, second, HALF)
    else:
        slot = tl.load(slots_ptr + token)
        if slot >= 0:
            block = slot // BLOCK_SIZE
            offset = slot % BLOCK_SIZE
            if group < Q_GROUPS + KV_GROUPS:
                heads = (group - Q_GROUPS) * HEADS + tl.arange(0, HEADS)
                mask = (heads < NUM_KV_HEADS)[:, None] & column_mask[None, :]
                first, second = _load_heads(
                    k_ptr, token, k_token_stride, k_head_stride, heads, columns, mask, HALF
                )
                if HAS_NORM:
                    first, second = _normalised(first, second, k_weight_ptr, columns, column_mask, eps, HALF)
                position = tl.load(positions_ptr + token)
                first, second = _rotated(first, second, cos_sin_ptr, position, columns, column_mask, HALF)
                if HAS_SCALES:
                    first, second = _stored(first, second, k_scales_ptr, heads, NUM_KV_HEADS, k_cache_ptr)
                at = k_cache_ptr + block * k_block_stride + offset * k_slot_stride
                _store_heads(at, k_cache_head_stride, heads, columns, mask, first, second, HALF)
            else:
                heads = (group - Q_GROUPS - KV_GROUPS) * HEADS + tl.arange(0, HEADS)
                mask = (heads < NUM_KV_HEADS)[:, None] & column_mask[None, :]
                first, second = _load_heads(
                    v_ptr, token, v_token_stride, v_head_stride, heads, columns, mask, HALF
                )
                if HAS_SCALES:
                    first, second = _stored(first, second, v_scales_ptr, heads, NUM_KV_HEADS, v_cache_ptr)
                at = v_cache_ptr + block * v_block_stride + offset * v_slot_stride
                _store_heads(at, v_cache_head_stride, heads, columns, mask, first, second, HALF)


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
    """See `kernels.rope_kv_write`. Tokens, heads and slots may lie apart; elements of a head must not."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, block_size = k_cache.shape[1], k_cache.shape[2]
    if any(tensor.stride(-1) != 1 for tensor in (q, k, v, k_cache, v_cache)) or not cos_sin.is_contiguous():
        raise ValueError("the elements of a head must be adjacent")
    out = torch.empty((num_tokens, num_heads, head_dim), dtype=q.dtype, device=q.device)
    if num_tokens == 0:
        return out
    has_norm = q_weight is not None and k_weight is not None
    half = head_dim // 2
    # Few tokens: many small programs. Many: fewer loads of the same cosines.
    heads = 4 if num_tokens <= 64 else 8
    groups = triton.cdiv(num_heads, heads) + 2 * triton.cdiv(num_kv_heads, heads)
    _rope_kv_write_kernel[(num_tokens, groups)](
        q, k, v, out, cos_sin, positions, slots, k_cache, v_cache,
        q_weight if has_norm else q, k_weight if has_norm else k, eps,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        v_cache.stride(0), v_cache.stride(1), v_cache.stride(2),
        *(scales or (q, q)),
        NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads, HALF=half, HALF_BLOCK=triton.next_power_of_2(half),
        BLOCK_SIZE=block_size, HEADS=heads, HAS_NORM=has_norm, HAS_SCALES=scales is not None,
        num_warps=heads // 4, **pdl.options(),
    )  # fmt: skip
    return out
