"""The decoder: one implementation that every supported architecture configures.

Weights are plain tensors in a flat dictionary under their names in `DecoderWeights.specs`; q, k and v, and gate and
up, are fused, so that a layer is four matrix products.
"""

from copy import copy
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import embedding

from gpu_worker.kv_cache import KvCache
from gpu_worker.models.architectures import DecoderConfig
from gpu_worker.models.rope import cos_sin_table
from kernels.linear import Norm, gate_up_silu, linear, linear_add
from kernels.paged_attention import AttentionPlan, Chunks, SharedPrefixes, plan_attention
from kernels.rms_norm import rms_norm
from kernels.rope_attention import Rotation, rope_attention
from kernels.silu_mul import silu_mul


@dataclass(slots=True)
class AttentionInputs:
    """What attention needs of a batch: n tokens of some rows, row after row."""

    positions: torch.Tensor
    """int64 [n]."""
    slots: torch.Tensor
    """int64 [n]: where each token's KV goes, block * block_size + offset; -1 for nowhere."""
    plan: AttentionPlan


@dataclass(slots=True)
class LayerWeights:
    """One layer; a bias or norm that the architecture lacks is None."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    output: torch.Tensor
    output_bias: torch.Tensor | None
    post_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter: layers are `layers.<i>.<field of LayerWeights>`."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_norm": (hidden,),
        "qkv": (q_size + 2 * kv_size, hidden),
        "output": (hidden, q_size),
        "post_norm": (hidden,),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
    }
    if config.qkv_bias:
        layer["qkv_bias"] = (q_size + 2 * kv_size,)
    if config.output_bias:
        layer["output_bias"] = (hidden,)
    if config.qk_norm:
        layer["q_norm"] = layer["k_norm"] = (config.head_dim,)
    if config.mlp_bias:
        layer["gate_up_bias"], layer["down_bias"] = (2 * inner,), (hidden,)
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab_size, hidden), "final_norm": (hidden,)}
    if not config.tie_word_embeddings:
        shapes["head"] = (config.vocab_size, hidden)
    for index in range(config.num_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


class Decoder:
    """Computes hidden states and logits; keeps no state of its own besides weights and RoPE tables."""

    def __init__(
        self, config: DecoderConfig, parameters: dict[str, torch.Tensor], num_positions: int
    ) -> None:
        self.config = config
        self._embedding = parameters["embedding"]
        self._final_norm = parameters["final_norm"]
        self._head = parameters.get("head", self._embedding)
        fields = LayerWeights.__dataclass_fields__
        self._layers = [
            LayerWeights(**{name: parameters.get(f"layers.{index}.{name}") for name in fields})  # type: ignore[arg-type]
            for index in range(config.num_layers)
        ]
        table = cos_sin_table(config.rope, config.head_dim, num_positions)
        self._cos_sin = table.to(self._embedding.device)
        self._scale = config.head_dim**-0.5

    @property
    def can_share(self) -> bool:
        """Whether rows that begin alike may attend to their beginnings together: no layer has a window."""
        return all(window is None for window in self.config.windows)

    def shallow(self) -> "Decoder":
        """The first layers, as few as have every window: launches every kernel, in a fraction of the time."""
        config = self.config
        count = next(
            count
            for count in range(1, config.num_layers + 1)
            if set(config.windows[:count]) == set(config.windows)
        )
        few = copy(self)
        few.config = replace(config, num_layers=count, windows=config.windows[:count])
        few._layers = self._layers[:count]
        return few

    def forward(self, token_ids: torch.Tensor, inputs: AttentionInputs, cache: KvCache) -> torch.Tensor:
        """Hidden states [n, hidden] of token_ids [n] int64; writes their KV."""
        eps = self.config.rms_norm_eps
        # Torch's is a full launch, behind which attention may read its plan early (`kernels.pdl`).
        residual = embedding(token_ids, self._embedding)
        for index, layer in enumerate(self._layers):
            out = self._attention(index, layer, residual, inputs, cache)
            residual = _linear_add(out, layer.output, layer.output_bias, residual)
            inner = _gated(residual, layer, eps)
            residual = _linear_add(inner, layer.down, layer.down_bias, residual)
        return rms_norm(residual, self._final_norm, eps)

    def plan_attention(
        self,
        block_tables: torch.Tensor,
        context_lens: torch.Tensor,
        num_decoding: int,
        chunks: Chunks | None = None,
        prefixes: SharedPrefixes | None = None,
    ) -> AttentionPlan:
        """See `kernels.paged_attention.plan_attention`."""
        config = self.config
        return plan_attention(
            block_tables, context_lens, num_decoding, chunks,
            num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
            prefixes=prefixes,
        )  # fmt: skip

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[n, vocab], in the dtype of the weights, of hidden states [n, hidden]."""
        return linear(hidden, self._head)

    def _attention(
        self, index: int, layer: LayerWeights, x: torch.Tensor, inputs: AttentionInputs, cache: KvCache
    ) -> torch.Tensor:
        """What the heads found, [n, heads * head_dim]."""
        config = self.config
        qkv = linear(x, layer.qkv, layer.qkv_bias, Norm(layer.input_norm, config.rms_norm_eps)).view(
            -1, config.num_heads + 2 * config.num_kv_heads, config.head_dim
        )
        q, k, v = torch.split(qkv, [config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1)
        keys, values, scales = cache.keys[index], cache.values[index], cache.scales[index]
        rotation = Rotation(
            self._cos_sin, inputs.positions, inputs.slots, layer.q_norm, layer.k_norm, config.rms_norm_eps
        )
        out = rope_attention(
            q, k, v, rotation, keys, values, inputs.plan, self._scale, config.windows[index], scales
        )
        return out.reshape(len(x), -1)


def _linear_add(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, residual: torch.Tensor
) -> torch.Tensor:
    return linear_add(x, weight, residual if bias is None else residual + bias)


def _gated(x: torch.Tensor, layer: LayerWeights, eps: float) -> torch.Tensor:
    """The inner activations of the feed-forward layer, [n, intermediate]."""
    norm = Norm(layer.post_norm, eps)
    if layer.gate_up_bias is None:
        return gate_up_silu(x, layer.gate_up, norm)
    return silu_mul(linear(x, layer.gate_up, layer.gate_up_bias, norm))
