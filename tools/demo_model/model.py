"""The demo model for training: Qwen3's decoder over packed conversations, under the parameter names of Qwen3.

Sequences are packed end to end into one row of T tokens; `bounds` holds where each begins, and attention
never crosses a bound. `tests/tools/test_demo_model.py` holds the logits to those of transformers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch older than 2.10, where only the slow path below runs
    varlen_attn = None


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; names as in transformers' `Qwen3Config`."""

    vocab_size: int = 2048
    hidden_size: int = 320
    intermediate_size: int = 768
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 64
    rope_theta: float = 100_000.0
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 8192

    def as_dict(self) -> dict[str, Any]:
        """The sizes as plain values, for a checkpoint."""
        return asdict(self)


DEMO = Shape()
DRAFT = Shape(
    hidden_size=160, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2
)
TINY = Shape(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
)
"""For proving the training code on a CPU; too small to learn anything."""
SHAPES = {"demo": DEMO, "draft": DRAFT, "tiny": TINY}


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight.to(x.dtype) * wide.to(x.dtype)


def rotary(positions: Tensor, shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles: positions [T] to two tensors [T, 1, head_dim]."""
    exponents = (
        torch.arange(0, shape.head_dim, 2, device=positions.device, dtype=torch.float32) / shape.head_dim
    )
    angles = positions.float()[:, None] / shape.rope_theta**exponents
    angles = torch.cat([angles, angles], dim=-1)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn heads x [T, H, head_dim] by the angles."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """Causal attention inside each packed sequence: q [T, H, D], k and v [T, KV, D] to [T, H, D].

    `bounds` [N + 1] int32 may repeat its last entry; `longest` bounds every length and is static for the compiler.
    """
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    if q.is_cuda and varlen_attn is not None:
        return varlen_attn(q, k, v, bounds, bounds, longest, longest, window_size=(-1, 0))  # type: ignore[no-any-return]
    index = torch.arange(q.shape[0], device=q.device)
    document = torch.searchsorted(bounds, index.to(bounds.dtype), right=True)
    mask = (document[:, None] == document[None, :]) & (index[:, None] >= index[None, :])
    heads = functional.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), attn_mask=mask
    )
    return heads.transpose(0, 1)


class Attention(nn.Module):
    """Grouped-query attention with normed queries and keys."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, kv_width = (
            shape.num_attention_heads * shape.head_dim,
            shape.num_key_value_heads * shape.head_dim,
        )
        self.q_proj = nn.Linear(shape.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, shape.hidden_size, bias=False)
        self.q_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)
        self.k_norm = RMSNorm(shape.head_dim, shape.rms_norm_eps)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], bounds: Tensor, longest: int) -> Tensor:
        size = (x.shape[0], -1, self.shape.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).view(size)), *angles)
        k = rotate(self.k_norm(self.k_proj(x).view(size)), *angles)
        heads = attend(q, k, self.v_proj(x).view(size), bounds, longest)
        return self.o_proj(heads.reshape(x.shape[0], -1))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """SwiGLU feed-forward layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.self_attn = Attention(shape)
        self.mlp = MLP(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], bounds: Tensor, longest: int) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), angles, bounds, longest)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Embedding, layers and the final norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers))
        self.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)


class DemoModel(nn.Module):
    """A decoder whose output layer is its embedding."""

    def __init__(self, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.model = Decoder(shape)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # Layers that write to the residual stream start at zero, so that training begins from the identity.
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.0 if writes else 0.02 if "embed" in name else shape.hidden_size**-0.5
                nn.init.normal_(weight, std=std)

    def forward(self, tokens: Tensor, positions: Tensor, bounds: Tensor, longest: int) -> Tensor:
        """Logits [T, vocab] of packed tokens [T]; `dtype` is that of the activations, as later in serving."""
        table = self.model.embed_tokens.weight.to(self.dtype)
        x = functional.embedding(tokens, table)
        angles = rotary(positions, self.shape, self.dtype)
        with torch.autocast(tokens.device.type, self.dtype, enabled=self.dtype != torch.float32):
            for layer in self.model.layers:
                x = layer(x, angles, bounds, longest)
            return functional.linear(self.model.norm(x), table)


def parameters_in(model: nn.Module) -> int:
    """How many numbers a model holds."""
    return sum(weight.numel() for weight in model.parameters())
