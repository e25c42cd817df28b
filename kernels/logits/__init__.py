"""What changes logits before sampling: repetition, frequency and presence penalties.

Repetition penalty: Keskar et al., "CTRL", 2019. Floor: one read and write of the logits and one read of counts.
"""

import torch

from kernels.dispatch import implementation


def apply_penalties(
    logits: torch.Tensor,
    output_counts: torch.Tensor,
    in_prompt: torch.Tensor,
    repetition: torch.Tensor,
    frequency: torch.Tensor,
    presence: torch.Tensor,
) -> torch.Tensor:
    """Penalised logits [n, vocab] float32.

    logits [n, vocab] float32; output_counts [n, vocab] integers: occurrences in the output; in_prompt
    [n, vocab] bool; repetition, frequency, presence [n] float32 (1, 0 and 0 change nothing).
    """
    result: torch.Tensor = implementation("logits", logits).apply_penalties(
        logits, output_counts, in_prompt, repetition, frequency, presence
    )
    return result
