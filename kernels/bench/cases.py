"""One op at one size: what to call, and what it cannot do without."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BFLOAT16_BYTES = 2
# Weights and caches are read in turn from so many bytes of copies: more than any cache, as a whole model is.
IN_TURN_BYTES = 256 << 20
MAX_COPIES = 96


@dataclass(frozen=True)
class Sizes:
    """The sizes of a decoder that its kernels see."""

    name: str
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    has_qk_norm: bool

    def products(self) -> dict[str, tuple[int, int]]:
        """Weight shapes [n, k] of a layer and of the head."""
        q_size = self.heads * self.head_dim
        return {
            "qkv": (q_size + 2 * self.kv_heads * self.head_dim, self.hidden),
            "output": (self.hidden, q_size),
            "gate_up": (2 * self.inner, self.hidden),
            "down": (self.hidden, self.inner),
            "head": (self.vocab, self.hidden),
        }


def sizes_of(name: str, config: Mapping[str, Any]) -> Sizes:
    """Sizes of a Hugging Face config of the supported architectures."""
    heads = config["num_attention_heads"]
    return Sizes(
        name=name,
        hidden=config["hidden_size"],
        inner=config["intermediate_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab=config["vocab_size"],
        has_qk_norm=config["architectures"] == ["Qwen3ForCausalLM"],
    )


@dataclass(frozen=True)
class Case:
    """One op at one size. `calls` read different memory where that is what a model would do."""

    op: str
    rows: int
    num_bytes: int
    """Read and written at the least."""
    flops: int
    """Of its matrix products."""
    calls: Sequence[Callable[[], object]]
    detail: str = ""


def num_copies(num_bytes: int) -> int:
    """How many copies of something make up what no cache holds."""
    return max(1, min(MAX_COPIES, IN_TURN_BYTES // max(1, num_bytes)))
