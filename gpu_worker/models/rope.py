"""Rotary position embedding tables with the scalings of Hugging Face checkpoints.

Formulas: llama3 from Meta's Llama 3.1 release; linear from Chen et al., "Position Interpolation", 2023; yarn from
Peng et al., "YaRN", 2023; each as transformers computes it, so that the tables agree to the last bit of float32.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from quire.errors import InvalidRequest

SUPPORTED = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """How positions become angles."""

    kind: str
    theta: float
    parameters: Mapping[str, Any]
    """The scaling's own fields, as config.json has them."""


def rope_config(config: Mapping[str, Any]) -> RopeConfig:
    """Read `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`. Raises InvalidRequest."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in SUPPORTED:
        raise InvalidRequest(
            f"the RoPE scaling {kind!r} is not supported; supported are {', '.join(SUPPORTED)}", param="model"
        )
    if float(parameters.get("partial_rotary_factor", 1.0)) != 1.0:
        raise InvalidRequest("partial rotary embeddings are not supported", param="model")
    theta = float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))
    if kind in ("llama3", "yarn"):
        parameters.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return RopeConfig(kind, theta, parameters)


def cos_sin_table(rope: RopeConfig, head_dim: int, num_positions: int) -> torch.Tensor:
    """float32 [num_positions, head_dim]: head_dim / 2 cosines, then as many sines, of each position."""
    # The tables are made on the CPU wherever they are used: devices differ in the last bit of pow and cos.
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    attention_factor = 1.0
    if rope.kind == "linear":
        frequencies = frequencies / rope.parameters["factor"]
    elif rope.kind == "llama3":
        frequencies = _llama3(frequencies, rope.parameters)
    elif rope.kind == "yarn":
        frequencies, attention_factor = _yarn(rope, head_dim)
    angles = torch.arange(num_positions).float()[:, None] * frequencies[None, :]
    return torch.cat((angles.cos(), angles.sin()), dim=-1) * attention_factor


def _llama3(frequencies: torch.Tensor, parameters: Mapping[str, Any]) -> torch.Tensor:
    factor = parameters["factor"]
    low_factor, high_factor = parameters["low_freq_factor"], parameters["high_freq_factor"]
    original = parameters["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    scaled = torch.where(wavelengths > original / low_factor, frequencies / factor, frequencies)
    smooth = (original / wavelengths - low_factor) / (high_factor - low_factor)
    smoothed = (1 - smooth) * scaled / factor + smooth * scaled
    is_medium = (wavelengths >= original / high_factor) & (wavelengths <= original / low_factor)
    return torch.where(is_medium, smoothed, scaled)


def _yarn(rope: RopeConfig, head_dim: int) -> tuple[torch.Tensor, float]:
    parameters = rope.parameters
    factor: float = parameters["factor"]
    original = parameters["original_max_position_embeddings"]
    low = _yarn_dimension(parameters.get("beta_fast") or 32, head_dim, rope.theta, original)
    high = _yarn_dimension(parameters.get("beta_slow") or 1, head_dim, rope.theta, original)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    extrapolated = 1 - ramp
    periods = rope.theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    frequencies = (1.0 / (factor * periods)) * (1 - extrapolated) + (1.0 / periods) * extrapolated
    return frequencies, _yarn_attention_factor(parameters, factor)


def _yarn_dimension(num_rotations: float, head_dim: int, theta: float, original: int) -> float:
    """The dimension whose angle turns `num_rotations` times over the original context."""
    return (head_dim * math.log(original / (num_rotations * 2 * math.pi))) / (2 * math.log(theta))


def _yarn_attention_factor(parameters: Mapping[str, Any], factor: float) -> float:
    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    given = parameters.get("attention_factor")
    if given is not None:
        return float(given)
    mscale, mscale_all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return magnitude(mscale) / magnitude(mscale_all_dim)
    return magnitude(1.0)
