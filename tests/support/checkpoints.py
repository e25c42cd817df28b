"""Tiny real checkpoints: random weights saved by transformers, a tokenizer trained on the protos."""

import functools
import tempfile
from pathlib import Path
from typing import Any

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
VOCAB_SIZE = 768
MAX_MODEL_LEN = 2048
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>")

CHAT_TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>system\\nTools: ' + (tools | tojson) + '<|im_end|>\\n' }}{% endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>' + (call.function | tojson) + '</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""

_REPOSITORY = Path(__file__).parents[2]


@functools.cache
def checkpoint(architecture: str = "LlamaForCausalLM", **overrides: Any) -> Path:
    """A directory with sharded fp32 safetensors, tokenizer and chat template; one per arguments and process.

    `overrides` are fields of the transformers config (hashable values; a dict as a tuple of its items).
    """
    directory = Path(_root().name) / f"{architecture}-{abs(hash(tuple(sorted(overrides.items())))):x}"
    _save_model(architecture, directory, {key: _thaw(value) for key, value in overrides.items()})
    tokenizer().save_pretrained(str(directory))
    return directory


def _thaw(value: Any) -> Any:
    is_items = isinstance(value, tuple) and all(isinstance(item, tuple) for item in value)
    return dict(value) if is_items and value else value


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="quire-checkpoints-")


def _save_model(architecture: str, directory: Path, overrides: dict[str, Any]) -> None:
    import torch
    import transformers

    config_class = getattr(transformers, architecture.removesuffix("ForCausalLM") + "Config")
    fields: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": MAX_MODEL_LEN,
        "tie_word_embeddings": architecture.startswith("Qwen"),
        "initializer_range": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if architecture == "MistralForCausalLM":
        fields["sliding_window"] = None
    torch.manual_seed(0)
    model = getattr(transformers, architecture)(config_class(**(fields | overrides)))
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms of all ones and biases of zero would hide a mix-up
            torch.nn.init.normal_(parameter, mean=parameter.detach().mean().item(), std=0.1)
    model.save_pretrained(directory, max_shard_size="200KB")


@functools.cache
def tokenizer() -> Any:
    """A byte-level BPE tokenizer as transformers loads it, trained on this repository's protos."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(_REPOSITORY.glob("protos/quire/v1/*.proto"))
    trained.train_from_iterator((path.read_text() for path in sources), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_MODEL_LEN,
    )
