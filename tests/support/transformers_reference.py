"""What transformers itself generates, in fp32 on the CPU."""

import functools
from pathlib import Path
from typing import Any


@functools.cache
def reference_model(directory: Path) -> Any:
    """The checkpoint as transformers loads it."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def greedy_tokens(directory: Path, prompt: list[int], num_tokens: int) -> list[int]:
    """Exactly `num_tokens` greedy tokens after `prompt`, end-of-sequence tokens among them."""
    import torch

    with torch.inference_mode():
        output = reference_model(directory).generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=num_tokens,
            min_new_tokens=None,
            do_sample=False,
            eos_token_id=-1,
        )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens
