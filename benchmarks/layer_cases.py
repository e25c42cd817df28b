"""What `benchmarks.kernels_layer` measures: each op of a decode step, with the bytes that it must move."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from kernels.linear import reference as linear_reference
from kernels.logits import apply_penalties
from kernels.logprobs import logprobs
from kernels.rms_norm import add_rms_norm, rms_norm
from kernels.rope_kv_write import rope_kv_write
from kernels.sampling import greedy, sample, sample_unfiltered
from kernels.silu_mul import silu_mul

DEVICE = "cuda"
_BFLOAT16 = 2


@dataclass(frozen=True)
class Model:
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


MODELS = (
    Model("llama-8b", 4096, 14336, 32, 8, 128, 128256, has_qk_norm=False),
    Model("qwen3-0.6b", 1024, 3072, 16, 8, 128, 151936, has_qk_norm=True),
)


@dataclass(frozen=True)
class Case:
    """One op at one batch size."""

    op: str
    num_bytes: int
    call: Callable[[], object]


def layer_cases(model: Model, batch: int) -> Iterator[Case]:
    """Norms, activation, rotation with the KV write."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=DEVICE).bfloat16()

    x, residual, weight = random(batch, model.hidden), random(batch, model.hidden), random(model.hidden)
    elements = batch * model.hidden
    yield Case("rms_norm", 2 * elements * _BFLOAT16, lambda: rms_norm(x, weight, 1e-6))
    yield Case("add_rms_norm", 4 * elements * _BFLOAT16, lambda: add_rms_norm(x, residual, weight, 1e-6))
    gate_up = random(batch, 2 * model.inner)
    yield Case("silu_mul", 3 * batch * model.inner * _BFLOAT16, lambda: silu_mul(gate_up))
    sizes = [model.heads, model.kv_heads, model.kv_heads]
    q, k, v = torch.split(random(batch, sum(sizes), model.head_dim), sizes, dim=1)
    caches = random(2, batch + 1, model.kv_heads, 16, model.head_dim)
    cos_sin = torch.randn(4096, model.head_dim, device=DEVICE)
    positions = torch.randint(0, 4096, (batch,), device=DEVICE)
    slots = torch.randperm(16 * batch, device=DEVICE)[:batch]
    norm = random(model.head_dim) if model.has_qk_norm else None
    yield Case(
        "rope_kv_write",
        batch * (2 * sum(sizes) * _BFLOAT16 + 4) * model.head_dim,
        lambda: rope_kv_write(q, k, v, cos_sin, positions, slots, caches[0], caches[1], norm, norm, 1e-6),
    )


def sampling_cases(model: Model, batch: int) -> Iterator[Case]:
    """From logits to tokens: peaked rows are like a model's, flat ones are the filters' worst case."""
    vocab = model.vocab
    flat = torch.randn(batch, vocab, device=DEVICE).bfloat16().float()
    peaked = flat * 2
    peaked[:, torch.randperm(vocab, device=DEVICE)[:50]] += 8
    peaked = peaked.bfloat16().float()
    ones, zeros = torch.ones(batch, device=DEVICE), torch.zeros(batch, device=DEVICE)
    none = torch.zeros(batch, dtype=torch.int64, device=DEVICE)
    seeds, positions = torch.randint(0, 2**62, (2, batch), device=DEVICE)
    twenty = none + 20
    read = batch * vocab * 4
    counts = torch.zeros(batch, vocab, dtype=torch.int32, device=DEVICE)
    in_prompt = torch.zeros(batch, vocab, dtype=torch.bool, device=DEVICE)
    yield Case(
        "penalties", read * 3 + read // 4,
        lambda: apply_penalties(peaked, counts, in_prompt, ones * 1.1, zeros, zeros),
    )  # fmt: skip
    yield Case("greedy", read, lambda: greedy(peaked))
    yield Case("temperature", read, lambda: sample_unfiltered(peaked, ones, seeds, positions))
    mixtures = {
        "no filter": (peaked, none, 1.0, 0.0),
        "top-k 20": (peaked, twenty, 1.0, 0.0),
        "top-p 0.9": (peaked, none, 0.9, 0.0),
        "top-k 20, top-p 0.95": (peaked, twenty, 0.95, 0.0),
        "min-p 0.05": (peaked, none, 1.0, 0.05),
        "top-p 0.9, flat": (flat, none, 0.9, 0.0),
    }
    for name, (logits, top_k, top_p, min_p) in mixtures.items():
        columns = (ones, top_k, ones * top_p, ones * min_p, seeds, positions)
        yield Case(f"sample: {name}", read, partial(sample, logits, *columns))
    yield Case("logprobs, none", read, lambda: logprobs(peaked, none, 0))
    yield Case("logprobs, 20", read, lambda: logprobs(peaked, none, 20))


def cublas(x: torch.Tensor, weight: torch.Tensor, *, is_gated: bool) -> torch.Tensor:
    """What the products are compared with: torch's, and the activation in a kernel of its own."""
    product = linear_reference.linear(x, weight, None)
    return silu_mul(product) if is_gated else product
