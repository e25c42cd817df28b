# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""One row times a matrix, on the ordinary arithmetic units.

Each program keeps the next tile of weights under way while it uses one; the first is asked for before the kernel
waits for the one that makes x.
"""

import triton
import triton.language as tl

from kernels import pdl


@triton.jit
def _weights(weight_ptr, rows, weight_stride, n, start, K: tl.constexpr, BLOCK_K: tl.constexpr):
    columns = start + tl.arange(0, BLOCK_K)
    at = weight_ptr + rows[:, None].to(tl.int64) * weight_stride + columns[None, :]
    mask = rows[:, None] < n
    if K % BLOCK_K != 0:
        mask = mask & (columns < K)[None, :]
    else:
        mask = mask & (start < K)
    return tl.load(at, mask=mask, other=0.0, eviction_policy="evict_first")


@triton.jit
def _norm_weights(norm_ptr, start, K: tl.constexpr, BLOCK_K: tl.constexpr):
    columns = start + tl.arange(0, BLOCK_K)
    return tl.load(norm_ptr + columns, mask=columns < K, other=0.0)


@triton.jit
def _norm_scale(x_ptr, eps, K: tl.constexpr, BLOCK_K: tl.constexpr):
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for start in range(0, K, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptr + columns, mask=columns < K, other=0.0).to(tl.float32)
        squares += x * x
    return tl.rsqrt(tl.sum(squares, axis=0) / K + eps)


@triton.jit
def gemv_kernel(
    x_ptr, weight_ptr, up_ptr, bias_ptr, residual_ptr, norm_ptr, out_ptr, weight_stride, n, eps, K: tl.constexpr,
    GATED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_NORM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [n] of x [K] and weights [n, K]; GATED: of two such, gate and up; HAS_NORM: of x after an RMS norm."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    weights = _weights(weight_ptr, rows, weight_stride, n, 0, K, BLOCK_K)
    if GATED:
        up_weights = _weights(up_ptr, rows, weight_stride, n, 0, K, BLOCK_K)
    if HAS_NORM:
        norm_weights = _norm_weights(norm_ptr, 0, K, BLOCK_K)
    pdl.launch_and_wait(PDL)
    sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    up_sums = sums
    scale = 1.0
    for start in range(0, K, BLOCK_K):
        columns = start + tl.arange(0, BLOCK_K)
        # Asked for first: nothing here depends on it, and it has the longest way.
        following = _weights(weight_ptr, rows, weight_stride, n, start + BLOCK_K, K, BLOCK_K)
        if GATED:
            up_following = _weights(up_ptr, rows, weight_stride, n, start + BLOCK_K, K, BLOCK_K)
        x = tl.load(x_ptr + columns, mask=columns < K, other=0.0).to(tl.float32)
        if HAS_NORM:
            if K <= BLOCK_K:
                scale = tl.rsqrt(tl.sum(x * x, axis=0) / K + eps)
            x *= norm_weights.to(tl.float32)
            norm_weights = _norm_weights(norm_ptr, start + BLOCK_K, K, BLOCK_K)
        x = x[None, :]
        if GATED:
            up_sums += up_weights.to(tl.float32) * x
            up_weights = up_following
        sums += weights.to(tl.float32) * x
        weights = following
    result = tl.sum(sums, axis=1)
    mask = rows < n
    if HAS_NORM:
        if K > BLOCK_K:
            # The same for all of x, so it could wait until here, out of the weights' way.
            scale = _norm_scale(x_ptr, eps, K, BLOCK_K)
        result *= scale
    if GATED:
        result = result / (1.0 + tl.exp(-result)) * (tl.sum(up_sums, axis=1) * scale)
    if HAS_BIAS:
        result += tl.load(bias_ptr + rows, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        result += tl.load(residual_ptr + rows, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, result.to(out_ptr.dtype.element_ty), mask=mask)
