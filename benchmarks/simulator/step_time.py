"""How long a step takes on a GPU: a roofline over weights, KV and matmuls, plus a fixed overhead.

A step reads every layer's weights and the output head once, and the KV of every row it computes for; whichever
of memory and arithmetic takes longer sets its time. Real kernels reach less than this, so the times are a lower
bound, and comparisons between policies are what they are for.
"""

from dataclasses import dataclass

_BYTES = 2  # bfloat16, weights and KV


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder that decide what a step costs (the names are config.json's)."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int

    @property
    def layer_parameters(self) -> int:
        """Matmul weights of all layers: query, key, value and output projections, and the gated MLP."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def head_parameters(self) -> int:
        """Weights of the output head."""
        return self.hidden_size * self.vocab_size

    @property
    def step_weight_bytes(self) -> int:
        """Bytes of weights that one step reads, however few rows it has."""
        return _BYTES * (self.layer_parameters + self.head_parameters)

    @property
    def kv_bytes_per_position(self) -> int:
        """Bytes of keys and values of one token position, all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * _BYTES

    @property
    def attention_flops_per_pair(self) -> int:
        """FLOPs of one query position against one key position, all layers: scores and weighted values."""
        return 4 * self.num_layers * self.num_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Gpu:
    """What a GPU does per second."""

    name: str
    memory_bytes: int
    bytes_per_s: float
    flops_per_s: float
    overhead_s: float
    """Part of a step that is neither: launches, sampling, the gaps between kernels."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step does, in token positions."""

    num_positions: int = 0
    """Positions computed."""
    num_samples: int = 0
    """Positions whose logits are needed."""
    kv_positions: int = 0
    """Positions whose KV is read, summed over rows."""
    attention_pairs: int = 0
    """(query, key) pairs, summed over rows."""


# Bandwidth and FLOP/s as measured on the card with large copies and matmuls; the overhead is an assumption.
H200 = Gpu("H200", 139 * 2**30, 4.15e12, 762e12, 0.0003)

SHAPES = {
    "llama-8b": ModelShape("llama-8b", 4096, 14336, 32, 32, 8, 128, 128256),
    "qwen3-0.6b": ModelShape("qwen3-0.6b", 1024, 3072, 28, 16, 8, 128, 151936),
}


def step_time_s(work: StepWork, shape: ModelShape, gpu: Gpu) -> float:
    """Seconds that one step takes. A step of no rows still reads the weights: a captured graph runs whole."""
    num_bytes = shape.step_weight_bytes + work.kv_positions * shape.kv_bytes_per_position
    flops = 2 * (work.num_positions * shape.layer_parameters + work.num_samples * shape.head_parameters)
    flops += work.attention_pairs * shape.attention_flops_per_pair
    return gpu.overhead_s + max(num_bytes / gpu.bytes_per_s, flops / gpu.flops_per_s)
