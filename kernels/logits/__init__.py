"""What changes logits before sampling: penalties, bias, tokens that may not come yet, masks of what a grammar allows.

Repetition penalty: Keskar et al., "CTRL", 2019. Floor of the penalties: one read and write of the logits and one read
of the counts; of a mask: one write of the logits that it forbids; the lists of the other edits are short. Measured on
an H200, 256 rows of 151,936: penalties 136 us (74 %), a mask 151 (13 %), lists of 300 tokens 4 (`quire bench kernels`).
"""

from dataclasses import dataclass

import torch

from kernels.dispatch import implementation


@dataclass(frozen=True, slots=True)
class TokenLists:
    """A list of tokens for each of n rows."""

    starts: torch.Tensor
    """int32 [n + 1]: row i has the entries from starts[i] to starts[i + 1]."""
    tokens: torch.Tensor
    """int32 [entries]."""


@dataclass(frozen=True, slots=True)
class Bias:
    """Numbers added to logits; no token is twice in a row's list."""

    lists: TokenLists
    values: torch.Tensor
    """float32 [entries]."""


@dataclass(frozen=True, slots=True)
class Bans:
    """Tokens that are forbidden below a length."""

    lists: TokenLists
    lengths: torch.Tensor
    """int64 [n]: tokens that a row has."""
    until: torch.Tensor
    """int64 [n]: the list is forbidden while the row has fewer."""


@dataclass(frozen=True, slots=True)
class Bitmask:
    """Tokens that are allowed in some of the rows."""

    rows: torch.Tensor
    """int64 [masks]: the row that each mask is for; none twice."""
    words: torch.Tensor
    """int32 [masks, (vocab + 31) // 32]: bit t % 32 of word t // 32 is set if token t is allowed."""


def apply_penalties(
    logits: torch.Tensor,
    rows: torch.Tensor,
    output_counts: torch.Tensor,
    in_prompt: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> torch.Tensor:
    """Penalised logits [n, vocab] float32, a new tensor.

    logits [n, vocab] of any float dtype; rows int64 [n]: where each row's tokens are counted, in output_counts
    [tables, vocab] integers: occurrences in the output, and in_prompt [tables, vocab] bool; repetition, frequency,
    presence [n] float32 (1, 0 and 0 change nothing).
    """
    result: torch.Tensor = implementation("logits", logits).apply_penalties(
        logits, rows, output_counts, in_prompt, repetition, frequency, presence
    )
    return result


def edit_logits(
    logits: torch.Tensor, bias: Bias | None = None, bans: Bans | None = None, bitmask: Bitmask | None = None
) -> None:
    """Change logits [n, vocab] float32 in place: add the bias, then forbid tokens, by -inf."""
    implementation("logits", logits).edit_logits(logits, bias, bans, bitmask)
