# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Up to 16 rows times a matrix, on the tensor cores, split along the sum so that every multiprocessor has work.

With a split, the program that finishes a tile last adds up what the others left in memory, always in the same order,
so results do not change from run to run.
"""

import triton
import triton.language as tl

from kernels import pdl

ROWS = tl.constexpr(16)
"""Rows of x that a tile has room for: the least that tl.dot takes."""


@triton.jit
def _products(
    x_ptr, weight_ptr, x_stride, weight_stride, m, n, outputs, first, K: tl.constexpr,
    K_PER_SPLIT: tl.constexpr, SPLIT_K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Sums [BLOCK_N, ROWS] over columns first to first + K_PER_SPLIT, a multiple of BLOCK_K, as far as there are."""
    rows = tl.arange(0, ROWS)
    columns = first + tl.arange(0, BLOCK_K)
    weight_at = weight_ptr + outputs[:, None].to(tl.int64) * weight_stride + columns[None, :]
    x_at = x_ptr + rows[None, :] * x_stride + columns[:, None]
    sums = tl.zeros((BLOCK_N, ROWS), tl.float32)
    for done in tl.range(0, K_PER_SPLIT, BLOCK_K, num_stages=STAGES):
        weight_mask, x_mask = outputs[:, None] < n, rows[None, :] < m
        if K != K_PER_SPLIT * SPLIT_K:
            inside = columns + done < K
            weight_mask, x_mask = weight_mask & inside[None, :], x_mask & inside[:, None]
        weights = tl.load(weight_at + done, mask=weight_mask, other=0.0, eviction_policy="evict_first")
        x = tl.load(x_at + done, mask=x_mask, other=0.0)
        sums = tl.dot(weights, x, sums, input_precision="ieee")
    return sums


@triton.jit
def _finish(
    sums, up_sums, bias_ptr, residual_ptr, out_ptr, residual_stride, m, n, outputs, GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    rows = tl.arange(0, ROWS)
    mask = (outputs[:, None] < n) & (rows[None, :] < m)
    result = sums
    if GATED:
        result = sums / (1.0 + tl.exp(-sums)) * up_sums
    if HAS_BIAS:
        result += tl.load(bias_ptr + outputs, mask=outputs < n, other=0.0).to(tl.float32)[:, None]
    if HAS_RESIDUAL:
        at = residual_ptr + rows[None, :] * residual_stride + outputs[:, None]
        result += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    at = out_ptr + rows[None, :] * n + outputs[:, None]
    tl.store(at, result.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["m"])
def skinny_kernel(
    x_ptr, weight_ptr, up_ptr, bias_ptr, residual_ptr, out_ptr, partial_ptr, arrivals_ptr, x_stride,
    weight_stride, residual_stride, m, n, K: tl.constexpr, K_PER_SPLIT: tl.constexpr, SPLIT_K: tl.constexpr,
    GATED: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [m, n] of x [m, K] and weights [n, K]; GATED: of two such, gate and up.

    partial [tiles, SPLIT_K, 1 or 2, BLOCK_N, ROWS] float32; arrivals [tiles] int32, zero before and after.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    outputs = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    pdl.wait(PDL)
    first = split * K_PER_SPLIT
    sums = _products(
        x_ptr, weight_ptr, x_stride, weight_stride, m, n, outputs, first,
        K, K_PER_SPLIT, SPLIT_K, BLOCK_N, BLOCK_K, STAGES,
    )  # fmt: skip
    up_sums = sums
    if GATED:
        up_sums = _products(
            x_ptr, up_ptr, x_stride, weight_stride, m, n, outputs, first,
            K, K_PER_SPLIT, SPLIT_K, BLOCK_N, BLOCK_K, STAGES,
        )  # fmt: skip
    if SPLIT_K == 1:
        _finish(
            sums, up_sums, bias_ptr, residual_ptr, out_ptr, residual_stride, m, n, outputs,
            GATED, HAS_BIAS, HAS_RESIDUAL,
        )  # fmt: skip
    else:
        PARTS: tl.constexpr = 2 if GATED else 1
        SIZE: tl.constexpr = BLOCK_N * ROWS
        element = tl.arange(0, BLOCK_N)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
        tile_ptr = partial_ptr + tile.to(tl.int64) * (SPLIT_K * PARTS * SIZE) + element
        tl.store(tile_ptr + split * (PARTS * SIZE), sums)
        if GATED:
            tl.store(tile_ptr + split * (PARTS * SIZE) + SIZE, up_sums)
        # Every thread's stores come before the one thread's announcement.
        tl.debug_barrier()
        if tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel") == SPLIT_K - 1:
            sums = tl.zeros((BLOCK_N, ROWS), tl.float32)
            up_sums = sums
            for other in range(SPLIT_K):
                # Past the first-level cache, which knows nothing of other multiprocessors' stores.
                other_ptr = tile_ptr + other * (PARTS * SIZE)
                sums += tl.load(other_ptr, cache_modifier=".cg")
                if GATED:
                    up_sums += tl.load(other_ptr + SIZE, cache_modifier=".cg")
            tl.store(arrivals_ptr + tile, 0)
            _finish(
                sums, up_sums, bias_ptr, residual_ptr, out_ptr, residual_stride, m, n, outputs,
                GATED, HAS_BIAS, HAS_RESIDUAL,
            )  # fmt: skip
