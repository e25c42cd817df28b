"""Products and norms of eight layers in a row, as a decode step has them, where each begins while another ends."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch

from kernels.bench.cases import Sizes
from kernels.bench.timing import graph_us
from kernels.linear import Norm, gate_up_silu, linear, linear_add
from kernels.rms_norm import rms_norm
from kernels.silu_mul import silu_mul

ROWS = (1, 8, 16, 24, 32, 64, 96, 128, 192, 256, 384, 512)
_LAYERS = 8
_DEVICE = "cuda"
_EPS = 1e-6


@dataclass(frozen=True)
class Chain:
    """One line of the table: microseconds of one layer."""

    model: str
    m: int
    cublas_us: float
    chosen_us: float
    difference: float
    """Between the two results, relative."""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def chains(model: Sizes) -> Iterator[Chain]:
    """Layers without attention: its place is taken by the queries."""
    norm = Norm(torch.ones(model.hidden, device=_DEVICE).bfloat16(), _EPS)
    layers = [
        {
            name: (torch.randn(n, k, device=_DEVICE) / k**0.5).bfloat16()
            for name, (n, k) in model.products().items()
            if name != "head"
        }
        for _ in range(_LAYERS)
    ]
    for m in ROWS:
        x = torch.randn(m, model.hidden, device=_DEVICE).bfloat16()
        results = [run(x, layers, norm).float() for run in (_cublas, _chosen)]
        times = [graph_us([partial(run, x, layers, norm)]) for run in (_cublas, _chosen)]
        difference = float((results[1] - results[0]).norm() / results[0].norm())
        yield Chain(model.name, m, *(us / _LAYERS for us in times), difference)


def _cublas(x: torch.Tensor, layers: list[dict[str, torch.Tensor]], norm: Norm) -> torch.Tensor:
    x = x.clone()
    for layer in layers:
        qkv = torch.nn.functional.linear(rms_norm(x, *norm), layer["qkv"])
        x.addmm_(qkv[:, : layer["output"].shape[1]], layer["output"].t())
        inner = silu_mul(torch.nn.functional.linear(rms_norm(x, *norm), layer["gate_up"]))
        x.addmm_(inner, layer["down"].t())
    return x


def _chosen(x: torch.Tensor, layers: list[dict[str, torch.Tensor]], norm: Norm) -> torch.Tensor:
    # As the products write in place.
    x = x.clone()
    for layer in layers:
        qkv = linear(x, layer["qkv"], norm=norm)
        x = linear_add(qkv[:, : layer["output"].shape[1]], layer["output"], x)
        x = linear_add(gate_up_silu(x, layer["gate_up"], norm), layer["down"], x)
    return x
