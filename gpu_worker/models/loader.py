"""Fills a decoder's parameters from a checkpoint: safetensors by memory map, straight to dtype and device.

Pickled checkpoints (*.bin, *.pt) are never opened: reading them runs code.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gpu_worker.models.architectures import DecoderConfig
from gpu_worker.models.decoder import parameter_shapes
from quire.errors import InvalidRequest, NotFound
from quire.model_files import read_json

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"

# Saved by old releases; what they hold is recomputed.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)


@dataclass(frozen=True, slots=True)
class Part:
    """Where a tensor of the checkpoint goes: rows [start, start + size) of a parameter."""

    parameter: str
    start: int
    size: int


def load_parameters(
    directory: Path,
    config: DecoderConfig,
    dtype: torch.dtype,
    device: torch.device,
    on_progress: Callable[[float], None],
) -> dict[str, torch.Tensor]:
    """Read every parameter; `on_progress` gets the share done, 0 to 1.

    Raises NotFound for a missing file, InvalidRequest for one that is torn, or for missing, unexpected or misshapen
    tensors; the message names them.
    """
    shapes = parameter_shapes(config)
    parameters = {name: torch.empty(shape, dtype=dtype, device=device) for name, shape in shapes.items()}
    parts = _parts(config)
    seen: set[str] = set()
    files = _files(directory)
    for number, path in enumerate(files):
        for name, tensor in _tensors(path):
            seen.add(name)
            if name in parts:
                _place(name, tensor, parts[name], parameters)
            elif not name.endswith(_IGNORED_SUFFIXES) and not (
                name == "lm_head.weight" and config.tie_word_embeddings
            ):
                raise InvalidRequest(f"{path.name}: the decoder has no place for {name}", param="model")
            on_progress((number + len(seen) / (len(seen) + len(parts))) / len(files))
        on_progress((number + 1) / len(files))
    missing = sorted(parts.keys() - seen)
    if missing:
        raise InvalidRequest(
            f"{directory} lacks {len(missing)} tensors: {', '.join(missing[:5])} …", param="model"
        )
    return parameters


def dummy_parameters(
    config: DecoderConfig, dtype: torch.dtype, device: torch.device
) -> dict[str, torch.Tensor]:
    """Random weights of the right shapes, the same at every start: for tests and benchmarks of speed."""
    generator = torch.Generator(device=device).manual_seed(0)
    parameters = {}
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            parameters[name] = torch.full(
                shape, 0.0 if name.endswith("bias") else 1.0, dtype=dtype, device=device
            )
        else:
            tensor = torch.empty(shape, dtype=dtype, device=device)
            parameters[name] = tensor.normal_(0.0, 0.02, generator=generator)
    return parameters


def _files(directory: Path) -> list[Path]:
    if (directory / _INDEX).is_file():
        weight_map = read_json(directory, _INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise InvalidRequest(f"{directory / _INDEX} has no weight_map", param="model")
        files = [directory / str(name) for name in sorted(set(weight_map.values()))]
    else:
        files = [directory / _SINGLE]
    for path in files:
        if path.parent != directory:
            raise InvalidRequest(
                f"{_INDEX} names a file outside of the checkpoint: {path.name}", param="model"
            )
        if not path.is_file():
            pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt"))
            why = (
                "; pickled weights are there, and are never read: convert them to safetensors"
                if pickled
                else ""
            )
            raise NotFound(f"{path} is missing{why}", param="model")
    return files


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}", param="model") from None


def _place(name: str, tensor: torch.Tensor, part: Part, parameters: dict[str, torch.Tensor]) -> None:
    target = parameters[part.parameter].narrow(0, part.start, part.size)
    if tensor.shape != target.shape:
        raise InvalidRequest(
            f"{name} has the shape {list(tensor.shape)} where the config asks for {list(target.shape)}",
            param="model",
        )
    target.copy_(tensor)


def _parts(config: DecoderConfig) -> dict[str, Part]:
    """Every tensor of the checkpoint, by its Hugging Face name."""
    shapes = parameter_shapes(config)
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    inner = config.intermediate_size
    parts = {
        "model.embed_tokens.weight": Part("embedding", 0, config.vocab_size),
        "model.norm.weight": Part("final_norm", 0, config.hidden_size),
    }
    if "head" in shapes:
        parts["lm_head.weight"] = Part("head", 0, config.vocab_size)
    for index in range(config.num_layers):
        theirs, ours = f"model.layers.{index}", f"layers.{index}"
        whole = {
            "input_layernorm.weight": "input_norm",
            "post_attention_layernorm.weight": "post_norm",
            "self_attn.q_norm.weight": "q_norm",
            "self_attn.k_norm.weight": "k_norm",
            "self_attn.o_proj.weight": "output",
            "self_attn.o_proj.bias": "output_bias",
            "mlp.down_proj.weight": "down",
            "mlp.down_proj.bias": "down_bias",
        }
        for their_name, our_name in whole.items():
            if (parameter := f"{ours}.{our_name}") in shapes:
                parts[f"{theirs}.{their_name}"] = Part(parameter, 0, shapes[parameter][0])
        for kind, suffix in (("weight", ""), ("bias", "_bias")):
            start = 0
            for projection, size in (("q", q_size), ("k", kv_size), ("v", kv_size)):
                if f"{ours}.qkv{suffix}" in shapes:
                    name = f"{theirs}.self_attn.{projection}_proj.{kind}"
                    parts[name] = Part(f"{ours}.qkv{suffix}", start, size)
                start += size
            for number, projection in enumerate(("gate", "up")):
                if f"{ours}.gate_up{suffix}" in shapes:
                    name = f"{theirs}.mlp.{projection}_proj.{kind}"
                    parts[name] = Part(f"{ours}.gate_up{suffix}", number * inner, inner)
    return parts
