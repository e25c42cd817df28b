# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Reads memory and writes next to nothing: the rate of this kernel bounds what decoding can reach."""

import torch
import triton
import triton.language as tl

_BLOCK = 8192


@triton.jit
def _read_kernel(source_ptr, maxima_ptr, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    words = tl.load(source_ptr + program * BLOCK + tl.arange(0, BLOCK))
    tl.store(maxima_ptr + program, tl.max(words))


def read_all(source: torch.Tensor) -> torch.Tensor:
    """Read every byte of `source` (uint8 [n], n a multiple of 32768) once; returns the largest int32 of each 32 KiB."""
    words = source.view(torch.int32)
    num_blocks = words.numel() // _BLOCK
    maxima = torch.empty(num_blocks, dtype=torch.int32, device=source.device)
    _read_kernel[(num_blocks,)](words, maxima, BLOCK=_BLOCK, num_warps=8)
    return maxima
