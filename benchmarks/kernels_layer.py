# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""What the choices of a decode step's kernels rest on, at the sizes of two models.

    python -m benchmarks.kernels_layer --out kernels_layer.json

Three tables: products against cuBLAS, with the best tiles of a small sweep; the products of layers in a row, with
cuBLAS and as they are chosen; and the gap between two tiny kernels in a CUDA graph, with and without programmatic
dependent launch. A case that fails prints its error, and the rest goes on. `quire bench kernels` measures every
kernel as it is chosen.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import triton
import triton.language as tl

from benchmarks.layer_chain import chains
from benchmarks.linear_sweep import sweep
from kernels import pdl
from kernels.bench.cases import Sizes, sizes_of
from kernels.bench.timing import copy_bandwidth, graph_us
from quire.bench.shapes import shapes

_CHAIN = 100


@triton.jit
def _tiny_kernel(x_ptr, enabled: tl.constexpr):
    pdl.wait(enabled)
    at = x_ptr + tl.arange(0, 128)
    tl.store(at, tl.load(at) + 1.0)


def gaps() -> dict[str, float]:
    """Microseconds from one tiny kernel to the next, in a chain in which each reads what the last one wrote."""
    x = torch.zeros(128, device="cuda")
    found = {}
    for name, enabled in (("plain", False), ("programmatic dependent launch", True)):
        try:
            call = partial(_tiny_kernel[(1,)], x, enabled=enabled, launch_pdl=enabled)
            found[name] = graph_us([call], repeat=_CHAIN)
            print(f"gap, {name}: {found[name]:.2f} us", flush=True)
        except Exception as error:
            print(f"gap, {name}: {error!r:.300}", flush=True)
    return found


def products(model: Sizes, bandwidth: float) -> list[dict[str, object]]:
    """Each product by itself."""
    found = []
    for product in sweep(model):
        size = product.n * product.k * (4 if product.name == "gate_up" else 2)
        floor = size / bandwidth * 1e6
        chosen = f"{product.chosen_us:8.2f}" if product.chosen_us is not None else "       -"
        best = (
            f"{product.best_us:8.2f} {floor / product.best_us:6.1%}"
            if product.best_us is not None
            else "       -"
        )
        print(
            f"{product.model:12} {product.name:8} m={product.m:<3} n={product.n:<6} k={product.k:<5} floor {floor:7.2f}"
            f" cublas {product.cublas_us:8.2f} chosen {chosen} best {best} {product.best}",
            flush=True,
        )
        found.append(product.as_json())
    return found


def layers(model: Sizes) -> list[dict[str, object]]:
    """All products of a layer."""
    found = []
    for chain in chains(model):
        print(
            f"{chain.model:12} layer    m={chain.m:<3} cublas {chain.cublas_us:8.2f} chosen {chain.chosen_us:8.2f}"
            f" difference {chain.difference:.4f}",
            flush=True,
        )
        found.append(chain.as_json())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="also write everything as JSON to this file")
    parser.add_argument("--only", choices=["gaps", "products", "layers"], help="one table instead of all")
    arguments = parser.parse_args()
    bandwidth = copy_bandwidth()
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, triton {triton.__version__}, copy {bandwidth / 1e12:.2f} TB/s")
    report: dict[str, object] = {"device": name, "torch": torch.__version__, "triton": triton.__version__}
    report["copy_bytes_per_s"] = bandwidth
    models = [sizes_of(name, config) for name, config in shapes().items()]
    tables: dict[str, Callable[[], object]] = {
        "gaps": gaps,
        "products": lambda: [product for model in models for product in products(model, bandwidth)],
        "layers": lambda: [chain for model in models for chain in layers(model)],
    }
    for table, measure in tables.items():
        if arguments.only in (None, table):
            report[table] = measure()
            # After each table, so that an interruption costs only the next one.
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
