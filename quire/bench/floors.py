"""The least time that a workload can take: each byte read once a step, each product at the rate of the matrix units.

Prompts are computed first, then every request decodes at once: a prefill takes the longer of its products (causal
attention included) and of reading the weights; a decode step the longer of its products and of reading the weights
and the keys and values of all its sequences. What several prompts begin with counts once. Nothing else costs anything:
no launches, no norms, no sampling, no messages. An engine that overlaps prefill with decode could go a little below.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quire.bench.workloads import Prompt, Workload


@dataclass(frozen=True)
class Rooflines:
    """What the device reached in this run."""

    device: str
    read_bytes_per_s: float
    copy_bytes_per_s: float
    """Bytes read and written."""
    matmul_flops_per_s: float
    matmul_dtype: str


@dataclass(frozen=True)
class ModelCost:
    """What a decoder's tokens cost, from its config."""

    layer_weights: int
    """Parameters in the products of all layers."""
    head_weights: int
    num_layers: int
    attention_size: int
    """Query heads times head size."""
    kv_bytes_per_token: float
    weight_bytes: int
    """Of one parameter."""

    @property
    def step_bytes(self) -> int:
        """Weights that every step reads: all but an untied embedding table."""
        return (self.layer_weights + self.head_weights) * self.weight_bytes

    def attention_flops(self, scores: float) -> float:
        """Both products of attention, for `scores` pairs of a query and a key."""
        return 4.0 * self.num_layers * self.attention_size * scores


def model_cost(config: Mapping[str, Any], *, weight_bytes: int, kv_bytes_per_token: float) -> ModelCost:
    """Of a Hugging Face config of the supported architectures."""
    hidden, heads, layers = (
        config["hidden_size"],
        config["num_attention_heads"],
        config["num_hidden_layers"],
    )
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    attention = hidden * head_dim * (2 * heads + 2 * kv_heads)
    feed_forward = 3 * hidden * config["intermediate_size"]
    return ModelCost(
        layer_weights=layers * (attention + feed_forward),
        head_weights=hidden * config["vocab_size"],
        num_layers=layers,
        attention_size=heads * head_dim,
        kv_bytes_per_token=kv_bytes_per_token,
        weight_bytes=weight_bytes,
    )


@dataclass(frozen=True)
class Floor:
    """Seconds of a workload at the least."""

    prefill_s: float
    decode_s: float

    @property
    def total_s(self) -> float:
        """All of it."""
        return self.prefill_s + self.decode_s


def workload_floor(workload: Workload, model: ModelCost, rates: Rooflines) -> Floor:
    """Of all requests, submitted together to a cache that is empty."""
    prompts = [item.prompt for item in workload.items]
    prompt_lens = np.array([len(prompt) for prompt in prompts], dtype=np.float64)
    output_lens = np.array([item.output_len for item in workload.items], dtype=np.int64)
    return Floor(
        _prefill_s(prompt_lens, _reused_lens(prompts), model, rates),
        sum(decode_step_floors(prompt_lens, output_lens, model, rates)),
    )


def decode_step_floors(
    prompt_lens: NDArray[np.float64], output_lens: NDArray[np.int64], model: ModelCost, rates: Rooflines
) -> list[float]:
    """Seconds of each decode step; the first token of a request comes with its prompt."""
    floors = []
    for step in range(1, int(output_lens.max())):
        lens = prompt_lens[output_lens > step] + step
        num_bytes = model.step_bytes + model.kv_bytes_per_token * lens.sum()
        flops = 2.0 * (model.layer_weights + model.head_weights) * len(lens)
        flops += model.attention_flops(float(lens.sum()))
        floors.append(max(num_bytes / rates.read_bytes_per_s, flops / rates.matmul_flops_per_s))
    return floors


def _prefill_s(
    lens: NDArray[np.float64], reused: NDArray[np.float64], model: ModelCost, rates: Rooflines
) -> float:
    scores = (lens * (lens + 1) - reused * (reused + 1)) / 2
    flops = 2.0 * model.layer_weights * float((lens - reused).sum()) + 2.0 * model.head_weights * len(lens)
    flops += model.attention_flops(float(scores.sum()))
    return max(flops / rates.matmul_flops_per_s, model.step_bytes / rates.read_bytes_per_s)


def _reused_lens(prompts: list[Prompt]) -> NDArray[np.float64]:
    """Of each prompt, how much of its beginning another one has computed; the last token always is its own."""
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    reused = np.zeros(len(prompts))
    for before, after in itertools.pairwise(order):
        reused[after] = min(_common(prompts[before], prompts[after]), len(prompts[after]) - 1)
    return reused


def _common(one: Prompt, other: Prompt) -> int:
    length = min(len(one), len(other))
    return next((at for at in range(length) if one[at] != other[at]), length)
