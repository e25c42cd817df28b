# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: one program per row, which stays in registers between the sum of squares and the scaling."""

import torch
import triton
import triton.language as tl

from kernels import pdl


@triton.jit
def _rms_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    normed_ptr,
    total_ptr,
    x_stride,
    residual_stride,
    num_columns,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < num_columns
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0)
    pdl.launch_and_wait(PDL)
    x = tl.load(x_ptr + row * x_stride + columns, mask=mask, other=0.0)
    dtype = x.dtype
    if HAS_RESIDUAL:
        residual = tl.load(residual_ptr + row * residual_stride + columns, mask=mask, other=0.0)
        x = (x.to(tl.float32) + residual.to(tl.float32)).to(dtype)
        tl.store(total_ptr + row * num_columns + columns, x, mask=mask)
    x = x.to(tl.float32)
    normed = (x * tl.rsqrt(tl.sum(x * x, axis=0) / num_columns + eps)).to(dtype)
    scaled = normed.to(tl.float32) * weight.to(tl.float32)
    tl.store(normed_ptr + row * num_columns + columns, scaled.to(dtype), mask=mask)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """See `kernels.rms_norm`. Rows may lie apart; elements of a row must not."""
    rows = x.reshape(-1, x.shape[-1])
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(rows, None, weight, eps, normed, normed)
    return normed


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kernels.rms_norm`. Rows may lie apart; elements of a row must not."""
    width = x.shape[-1]
    normed, total = torch.empty((2, *x.shape), dtype=x.dtype, device=x.device)
    _launch(x.reshape(-1, width), residual.reshape(-1, width), weight, eps, normed, total)
    return normed, total


def _launch(
    rows: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    normed: torch.Tensor,
    total: torch.Tensor,
) -> None:
    num_rows, width = rows.shape
    if num_rows == 0:
        return
    added = rows if residual is None else residual
    if rows.stride(1) != 1 or added.stride(1) != 1:
        raise ValueError("the elements of a row must be adjacent")
    block = triton.next_power_of_2(width)
    _rms_norm_kernel[(num_rows,)](
        rows, added, weight, normed, total, rows.stride(0), added.stride(0), width, eps,
        HAS_RESIDUAL=residual is not None, BLOCK=block, num_warps=min(16, max(1, block // 512)), **pdl.options(),
    )  # fmt: skip
