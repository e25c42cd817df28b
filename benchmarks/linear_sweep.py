"""Products of up to 512 rows: cuBLAS, the tiles that `kernels.linear.choice` takes, and the best of a small sweep."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

import torch

from kernels.bench.cases import Sizes, num_copies
from kernels.bench.timing import graph_us
from kernels.linear import reference
from kernels.linear.choice import Tiles, choose
from kernels.linear.kernel import tiled_linear
from kernels.silu_mul import silu_mul

ROWS = (1, 2, 4, 8, 16, 24, 32, 64, 96, 128, 192, 256, 384, 512)
_DEVICE = "cuda"
_COMPILERS = 12


@dataclass(frozen=True)
class Product:
    """One line of the table; times in microseconds, None where nothing ran."""

    model: str
    name: str
    m: int
    n: int
    k: int
    cublas_us: float
    chosen_us: float | None
    best_us: float | None
    best: Tiles | None

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def candidates(m: int, rows: int, k: int, *, is_gated: bool) -> list[Tiles]:
    """Tiles worth a try for weights [rows, k]."""
    if m > 16:
        return _streams(m, rows, k, is_gated=is_gated)
    found = []
    if m == 1:
        shapes = [
            (2, 1024, 4),
            (4, 512, 4),
            (4, 1024, 4),
            (4, 2048, 8),
            (8, 512, 4),
            (8, 1024, 8),
            (1, 2048, 4),
        ]
        found = [
            Tiles("gemv", block_n=block_n // 2 if is_gated and block_n > 1 else block_n, block_k=block_k,
                  num_warps=warps)
            for block_n, block_k, warps in shapes
            if block_k <= 2 * k
        ]  # fmt: skip
    found += [
        Tiles("skinny", block_n=block_n, block_k=block_k, split_k=split_k, num_stages=stages)
        for block_n, block_k, stages in [(16, 256, 4), (32, 128, 5), (32, 256, 4), (64, 128, 4)]
        for split_k in (1, 2, 4)
        if k // split_k >= 2 * block_k
    ]
    return found


def _streams(m: int, rows: int, k: int, *, is_gated: bool) -> list[Tiles]:
    """Of the stream kernel: every tile and split of which at least a third of the GPU has work, in two depths."""
    columns = min(128, max(32, 1 << (m - 1).bit_length()))
    multiprocessors = torch.cuda.get_device_properties(_DEVICE).multi_processor_count
    return [
        Tiles("stream", block_n=block, block_k=64, split_k=split, num_stages=room // (128 * (block + columns)),
              num_warps=4 if block <= 128 and block * columns <= 8192 else 8, block_m=columns)
        for block in (64, 128, 256)
        for split in (1, 2, 4, 8)
        for room in (108 << 10, 204 << 10)
        if multiprocessors <= 3 * -(-rows // block) * -(-m // columns) * split <= 3 * multiprocessors
        and (split == 1 or (block < 256 and columns // split >= 8 and k >= 256 * split))
        and room >= 4 * 128 * (block + columns)
    ]  # fmt: skip


def sweep(model: Sizes) -> Iterator[Product]:
    """Every product of a model at every number of rows."""
    for name, (n, k) in model.products().items():
        is_gated = name == "gate_up"
        weights = [torch.randn(n, k, device=_DEVICE).bfloat16() for _ in range(num_copies(n * k * 2))]
        _compile(weights[0], is_gated)
        for m in ROWS:
            yield _measure(model.name, name, torch.randn(m, k, device=_DEVICE).bfloat16(), weights, is_gated)
        del weights


def cublas(x: torch.Tensor, weight: torch.Tensor, *, is_gated: bool) -> torch.Tensor:
    """What the products are compared with: torch's, and the activation in a kernel of its own."""
    product = reference.linear(x, weight, None)
    return silu_mul(product) if is_gated else product


def _compile(weight: torch.Tensor, is_gated: bool) -> None:
    """Compile every candidate beforehand, several at once."""
    rows, k = weight.shape

    def one(job: tuple[int, Tiles]) -> None:
        try:
            tiled_linear(torch.zeros(job[0], k, device=_DEVICE).bfloat16(), weight, job[1], is_gated=is_gated)
        except Exception as error:
            print(f"  {job[1]}: {error!r:.200}", flush=True)

    # The number of rows is no constant of a kernel but gemv's.
    jobs = {tiles: m for m in reversed(ROWS) for tiles in candidates(m, rows, k, is_gated=is_gated)}
    with ThreadPoolExecutor(_COMPILERS) as pool:
        list(pool.map(one, [(m, tiles) for tiles, m in jobs.items()]))
    torch.cuda.synchronize()


def _measure(model: str, name: str, x: torch.Tensor, weights: list[torch.Tensor], is_gated: bool) -> Product:
    m, k = x.shape
    n = len(weights[0]) // 2 if is_gated else len(weights[0])

    def tiled_us(tiles: Tiles) -> float | None:
        try:
            return graph_us(
                [partial(tiled_linear, x, weight, tiles, is_gated=is_gated) for weight in weights]
            )
        except Exception as error:
            print(f"  {model} {name} m={m} {tiles}: {error!r:.200}", flush=True)
            return None

    baseline = graph_us([partial(cublas, x, weight, is_gated=is_gated) for weight in weights])
    multiprocessors = torch.cuda.get_device_properties(_DEVICE).multi_processor_count
    chosen = choose(m, n, k, is_gated=is_gated, multiprocessors=multiprocessors)
    times = [(tiled_us(tiles), tiles) for tiles in candidates(m, len(weights[0]), k, is_gated=is_gated)]
    best_us, best = min(
        ((us, tiles) for us, tiles in times if us is not None),
        key=lambda timed: timed[0],
        default=(None, None),
    )
    return Product(
        model, name, m, n, k, baseline, tiled_us(chosen) if chosen is not None else None, best_us, best
    )
