# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: elementwise, one program per stretch of a row."""

import torch
import triton
import triton.language as tl

from kernels import pdl

_BLOCK = 1024


@triton.jit
def _silu_mul_kernel(gate_up_ptr, out_ptr, row_stride, inner, BLOCK: tl.constexpr, PDL: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < inner
    gate_ptr = gate_up_ptr + row * row_stride + columns
    pdl.wait(PDL)
    gate = tl.load(gate_ptr, mask=mask, other=0.0)
    up = tl.load(gate_ptr + inner, mask=mask, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out_ptr + row * inner + columns, (activated.to(tl.float32) * up).to(gate.dtype), mask=mask)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """See `kernels.silu_mul`. Rows may lie apart; elements of a row must not."""
    rows = gate_up.reshape(-1, gate_up.shape[-1])
    inner = rows.shape[1] // 2
    out = torch.empty((*gate_up.shape[:-1], inner), dtype=gate_up.dtype, device=gate_up.device)
    if out.numel() == 0:
        return out
    if rows.stride(1) != 1:
        raise ValueError("the elements of a row must be adjacent")
    _silu_mul_kernel[(rows.shape[0], triton.cdiv(inner, _BLOCK))](
        rows, out, rows.stride(0), inner, BLOCK=_BLOCK, num_warps=4, **pdl.options()
    )
    return out
