"""Which kernel computes a product, and with which tiles: the one place to change after measuring.

`python -m benchmarks.kernels_layer` prints the best tiles it found for every product of two models.
"""

from dataclasses import dataclass
from typing import Literal

_MULTIPROCESSORS = 132
_MAX_ROWS = 8


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is cut: `gemv` takes one row of x and no split, `skinny` up to 16 rows."""

    kernel: Literal["gemv", "skinny"]
    block_n: int
    """Weight rows per program."""
    block_k: int
    """Elements of each per iteration."""
    split_k: int = 1
    """Programs that share a product's elements."""
    num_warps: int = 4
    num_stages: int = 4


def choose(m: int, n: int, k: int, *, is_gated: bool = False) -> Tiles | None:
    """Tiles for x [m, k] and weights [n, k], or gated [2n, k]; None for torch's own matrix product."""
    if m > _MAX_ROWS:
        return None
    if m == 1:
        return _gemv_tiles(n, k, is_gated)
    return _skinny_tiles(n, k)


def _gemv_tiles(n: int, k: int, is_gated: bool) -> Tiles:
    """As many weight rows per program as leave every multiprocessor four programs, if there are so many rows."""
    block_n = 4 if is_gated else 8
    while block_n > 2 and n // block_n < 4 * _MULTIPROCESSORS:
        block_n //= 2
    return Tiles("gemv", block_n=block_n, block_k=1024 if k % 1024 == 0 else 512)


def _skinny_tiles(n: int, k: int) -> Tiles:
    """Split until every multiprocessor has two programs, as long as each has at least four iterations."""
    block_n, block_k = (64 if n >= 64 * 2 * _MULTIPROCESSORS else 32), 128
    split_k = 1
    while n // block_n * split_k < 2 * _MULTIPROCESSORS and k // (split_k * 2) >= 4 * block_k:
        split_k *= 2
    return Tiles("skinny", block_n=block_n, block_k=block_k, split_k=split_k)
