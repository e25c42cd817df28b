# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: penalties are elementwise, a row without any is copied and its counts are not read; edits touch their tokens.

A row's lists are the work of one program, so that its ban comes after its bias; masks are another kernel, after that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from kernels import pdl

if TYPE_CHECKING:
    from kernels.logits import Bans, Bias, Bitmask

_BLOCK = 2048
_LIST_BLOCK = 256


@triton.jit
def _penalties_kernel(
    logits_ptr,
    rows_ptr,
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
    logits = tl.load(logits_ptr + row * logits_stride + tokens, mask=mask, other=0.0).to(tl.float32)
    if (repetition != 1.0) | (frequency != 0.0) | (presence != 0.0):
        table = tl.load(rows_ptr + row)
        counts = tl.load(counts_ptr + table * counts_stride + tokens, mask=mask, other=0)
        in_prompt = tl.load(in_prompt_ptr + table * in_prompt_stride + tokens, mask=mask, other=0) != 0
        in_output = counts > 0
        factor = tl.where(in_prompt | in_output, repetition, 1.0)
        logits = tl.where(logits > 0, tl.div_rn(logits, factor), logits * factor)
        logits = logits - frequency * counts.to(tl.float32) - tl.where(in_output, presence, 0.0)
    tl.store(out_ptr + row * vocab + tokens, logits, mask=mask)


# One kernel whichever lists there are, so that it is compiled once.
@triton.jit(do_not_specialize=["has_bias", "has_bans"])
def _lists_kernel(
    logits_ptr,
    bias_starts_ptr,
    bias_tokens_ptr,
    bias_values_ptr,
    ban_starts_ptr,
    ban_tokens_ptr,
    lengths_ptr,
    until_ptr,
    logits_stride,
    has_bias,
    has_bans,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    pdl.wait(PDL)
    if has_bias != 0:
        end = tl.load(bias_starts_ptr + row + 1)
        for start in range(tl.load(bias_starts_ptr + row), end, BLOCK):
            entries = start + tl.arange(0, BLOCK)
            mask = entries < end
            at = row_ptr + tl.load(bias_tokens_ptr + entries, mask=mask, other=0)
            values = tl.load(bias_values_ptr + entries, mask=mask, other=0.0)
            tl.store(at, tl.load(at, mask=mask, other=0.0) + values, mask=mask)
        # A ban may be for a token that another thread has given a bias.
        tl.debug_barrier()
    if has_bans != 0:
        is_early = tl.load(lengths_ptr + row) < tl.load(until_ptr + row)
        if is_early:
            end = tl.load(ban_starts_ptr + row + 1)
            for start in range(tl.load(ban_starts_ptr + row), end, BLOCK):
                entries = start + tl.arange(0, BLOCK)
                mask = entries < end
                at = row_ptr + tl.load(ban_tokens_ptr + entries, mask=mask, other=0)
                tl.store(at, float("-inf"), mask=mask)


@triton.jit
def _mask_kernel(
    logits_ptr,
    rows_ptr,
    words_ptr,
    logits_stride,
    words_stride,
    vocab,
    WORDS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Allowed logits are neither read nor written."""
    pdl.wait(PDL)
    mask_index = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + mask_index)
    indices = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    words = tl.load(words_ptr + mask_index * words_stride + indices, mask=indices * 32 < vocab, other=0)
    bits = tl.arange(0, 32)[None, :]
    tokens = indices[:, None] * 32 + bits
    forbidden = ((words[:, None] >> bits) & 1) == 0
    minus_infinity = tl.full((WORDS, 32), float("-inf"), tl.float32)
    tl.store(logits_ptr + row * logits_stride + tokens, minus_infinity, mask=forbidden & (tokens < vocab))


def apply_penalties(
    logits: torch.Tensor,
    rows: torch.Tensor,
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
        logits, rows, output_counts, in_prompt, repetition, frequency, presence, out,
        logits.stride(0), output_counts.stride(0), in_prompt.stride(0), vocab,
        BLOCK=_BLOCK, num_warps=4, **pdl.options(),
    )  # fmt: skip
    return out


def edit_logits(logits: torch.Tensor, bias: Bias | None, bans: Bans | None, bitmask: Bitmask | None) -> None:
    """See `kernels.logits`. Rows may lie apart; elements of a row must not."""
    num_rows, vocab = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("the elements of a row must be adjacent")
    if num_rows and (bias is not None or bans is not None):
        ids, lengths = (logits.new_empty(0, dtype=dtype) for dtype in (torch.int32, torch.int64))
        bias_columns, ban_columns = (ids, ids, logits), (ids, ids, lengths, lengths)
        if bias is not None:
            bias_columns = (bias.lists.starts, bias.lists.tokens, bias.values)
        if bans is not None:
            ban_columns = (bans.lists.starts, bans.lists.tokens, bans.lengths, bans.until)
        _lists_kernel[(num_rows,)](
            logits, *bias_columns, *ban_columns, logits.stride(0), int(bias is not None),
            int(bans is not None), BLOCK=_LIST_BLOCK, num_warps=4, **pdl.options(),
        )  # fmt: skip
    if bitmask is not None and len(bitmask.rows):
        words = _BLOCK // 32
        _mask_kernel[(len(bitmask.rows), triton.cdiv(vocab, _BLOCK))](
            logits, bitmask.rows, bitmask.words, logits.stride(0), bitmask.words.stride(0), vocab,
            WORDS=words, num_warps=4, **pdl.options(),
        )  # fmt: skip
