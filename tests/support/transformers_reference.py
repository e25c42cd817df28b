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
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
    model = reference_model(directory)
    # Merged into the call's own configuration otherwise, and then it stops.
    model.generation_config.eos_token_id = None
    with torch.inference_mode():
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            generation_config=config,
        )
    tokens: list[int] = output[0, len(prompt) :].tolist()
    return tokens
