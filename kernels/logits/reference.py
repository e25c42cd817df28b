"""Plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from kernels.logits import Bans, Bias, Bitmask, TokenLists


def apply_penalties(
    logits: torch.Tensor,
    rows: torch.Tensor,
    output_counts: torch.Tensor,
    in_prompt: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> torch.Tensor:
    """See `kernels.logits`."""
    logits, counts = logits.float(), output_counts[rows]
    in_output = counts > 0
    factor = torch.where(in_prompt[rows] | in_output, repetition[:, None], 1.0)
    logits = torch.where(logits > 0, logits / factor, logits * factor)
    return logits - frequency[:, None] * counts - presence[:, None] * in_output


def edit_logits(logits: torch.Tensor, bias: Bias | None, bans: Bans | None, bitmask: Bitmask | None) -> None:
    """See `kernels.logits`."""
    if bias is not None:
        logits[_rows(bias.lists), bias.lists.tokens.long()] += bias.values
    if bans is not None:
        rows, tokens = _rows(bans.lists), bans.lists.tokens.long()
        kept = torch.where((bans.lengths < bans.until)[rows], float("-inf"), logits[rows, tokens])
        logits[rows, tokens] = kept
    if bitmask is not None:
        tokens = torch.arange(logits.shape[1], device=logits.device)
        allowed = (bitmask.words[:, tokens // 32] >> (tokens % 32)) & 1
        logits[bitmask.rows] = logits[bitmask.rows].masked_fill(allowed == 0, float("-inf"))


def _rows(lists: TokenLists) -> torch.Tensor:
    """The row of each entry."""
    entries = torch.arange(len(lists.tokens), dtype=lists.starts.dtype, device=lists.starts.device)
    return torch.searchsorted(lists.starts, entries, right=True) - 1
