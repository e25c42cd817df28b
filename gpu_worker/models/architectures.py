"""What a checkpoint's config.json says, as the configuration of the one decoder."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_worker.models.rope import RopeConfig, rope_config
from quire.errors import InvalidRequest

SUPPORTED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """A decoder-only transformer with grouped-query attention, RMSNorm, RoPE and a gated feed-forward layer."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool
    windows: tuple[int | None, ...]
    """Per layer: how many tokens a token sees, itself included; None for all before it."""
    dtype: str
    """torch name of the dtype that the checkpoint was saved in."""


def decoder_config(config: Mapping[str, Any]) -> DecoderConfig:
    """Read a Hugging Face config. Raises InvalidRequest for what the decoder cannot be configured to do."""
    architecture = next(iter(config.get("architectures") or ["none"]))
    if architecture not in SUPPORTED:
        raise InvalidRequest(
            f"the architecture {architecture} is not supported; supported are {', '.join(SUPPORTED)}",
            param="model",
        )
    if config.get("hidden_act", "silu") != "silu":
        raise InvalidRequest(
            f"the activation {config['hidden_act']} is not supported, only silu", param="model"
        )
    if config.get("quantization_config"):
        raise InvalidRequest("quantised checkpoints are not supported yet", param="model")
    try:
        return _decoder_config(architecture, config)
    except KeyError as missing:
        raise InvalidRequest(f"config.json has no {missing}", param="model") from None


def _decoder_config(architecture: str, config: Mapping[str, Any]) -> DecoderConfig:
    num_heads = config["num_attention_heads"]
    attention_bias = bool(config.get("attention_bias", False))
    is_qwen2 = architecture == "Qwen2ForCausalLM"
    return DecoderConfig(
        architecture=architecture,
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
        rms_norm_eps=config["rms_norm_eps"],
        rope=rope_config(config),
        max_position_embeddings=config["max_position_embeddings"],
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        # Qwen2 has biases on q, k and v alone, and no field that says so.
        qkv_bias=is_qwen2 or attention_bias,
        output_bias=attention_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=architecture == "Qwen3ForCausalLM",
        windows=_windows(architecture, config),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
    )


def _windows(architecture: str, config: Mapping[str, Any]) -> tuple[int | None, ...]:
    num_layers: int = config["num_hidden_layers"]
    window: int | None = config.get("sliding_window")
    if architecture == "LlamaForCausalLM" or window is None:
        return (None,) * num_layers
    if architecture == "MistralForCausalLM":
        return (window,) * num_layers
    if not config.get("use_sliding_window", False):
        return (None,) * num_layers
    kinds = config.get("layer_types") or [
        "sliding_attention" if layer >= config.get("max_window_layers", 28) else "full_attention"
        for layer in range(num_layers)
    ]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
