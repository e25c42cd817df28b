# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: elementwise; a row without penalties is copied and its counts are not read."""

import torch
import triton
import triton.language as tl

from kernels import pdl

_BLOCK = 2048


@triton.jit
def _penalties_kernel(
    logits_ptr,
    counts_ptr,
    in_prompt_ptr,
    repetition_ptr,
    frequency_ptr,
    presence_ptr,
    out_ptr,
    logits_stride,
    counts_stride,
    in_prompt_stride,
    vocab,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tokens = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = tokens < vocab
    pdl.wait(PDL)
    repetition = tl.load(repetition_ptr + row)
    frequency = tl.load(frequency_ptr + row)
    presence = tl.load(presence_ptr + row)
    logits = tl.load(logits_ptr + row * logits_stride + tokens, mask=mask, other=0.0)
    if (repetition != 1.0) | (frequency != 0.0) | (presence != 0.0):
        counts = tl.load(counts_ptr + row * counts_stride + tokens, mask=mask, other=0)
        in_prompt = tl.load(in_prompt_ptr + row * in_prompt_stride + tokens, mask=mask, other=0) != 0
        in_output = counts > 0
        factor = tl.where(in_prompt | in_output, repetition, 1.0)
        logits = tl.where(logits > 0, tl.div_rn(logits, factor), logits * factor)
        logits = logits - frequency * counts.to(tl.float32) - tl.where(in_output, presence, 0.0)
    tl.store(out_ptr + row * vocab + tokens, logits, mask=mask)


def apply_penalties(
    logits: torch.Tensor,
    output_counts: torch.Tensor,
    in_prompt: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> torch.Tensor:
    """See `kernels.logits`. Rows may lie apart; elements of a row must not."""
    num_rows, vocab = logits.shape
    if any(table.stride(1) != 1 for table in (logits, output_counts, in_prompt)):
        raise ValueError("the elements of a row must be adjacent")
    out = torch.empty((num_rows, vocab), dtype=torch.float32, device=logits.device)
    if num_rows == 0:
        return out
    _penalties_kernel[(num_rows, triton.cdiv(vocab, _BLOCK))](
        logits, output_counts, in_prompt, repetition, frequency, presence, out,
        logits.stride(0), output_counts.stride(0), in_prompt.stride(0), vocab,
        BLOCK=_BLOCK, num_warps=4, **pdl.options(),
    )  # fmt: skip
    return out
