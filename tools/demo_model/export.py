"""A training checkpoint as a directory that transformers, and Quire, load unchanged."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from demo_model.chat import END, PAD
from demo_model.model import DemoModel, Shape
from demo_model.tokenizer import wrap

MAX_SHARD = "12MB"


def qwen3_config(shape: Shape, tokenizer: Tokenizer) -> Qwen3Config:
    """The transformers configuration of a shape."""
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    sizes = shape.as_dict()
    theta = sizes.pop("rope_theta")
    return Qwen3Config(
        **sizes,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=pad,
        dtype="bfloat16",
        architectures=["Qwen3ForCausalLM"],
    )


def to_transformers(model: DemoModel, tokenizer: Tokenizer) -> Qwen3ForCausalLM:
    """The same weights in transformers' class, float32."""
    target = Qwen3ForCausalLM(qwen3_config(model.shape, tokenizer)).float()
    missing, unexpected = target.load_state_dict(
        {k: v.float() for k, v in model.state_dict().items()}, strict=False
    )
    if set(missing) - {"lm_head.weight"} or unexpected:
        raise ValueError(f"parameters do not match Qwen3: missing {missing}, unexpected {unexpected}")
    target.tie_weights()
    return target


def export(model: DemoModel, tokenizer: Tokenizer, directory: Path) -> None:
    """Write configuration, bfloat16 weights, tokenizer and templates to `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    target = to_transformers(model.cpu(), tokenizer).to(torch.bfloat16)
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    target.generation_config = GenerationConfig(do_sample=False, eos_token_id=[end, pad], pad_token_id=pad)
    target.save_pretrained(directory, max_shard_size=MAX_SHARD)
    wrap(tokenizer).save_pretrained(directory)
