"""Which kernel computes a product, and with which tiles: the one place to change after measuring.

`python -m benchmarks.kernels_layer` prints the best tiles it found for every product of two models.
"""

from dataclasses import dataclass
from typing import Literal

_MULTIPROCESSORS = 132
_MAX_ROWS = 16
_LARGE = 1 << 24
_LONG = 4096


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
    """Few weight rows per program, and of those as much at a time as hides the way from memory."""
    block_n = 2 if is_gated else 4
    if k <= 1024:
        return Tiles("gemv", block_n=4 if is_gated or n < 4096 else 8, block_k=512)
    if k <= 2048 and n < 4096:
        return Tiles("gemv", block_n=block_n, block_k=1024)
    if k <= 8192:
        return Tiles("gemv", block_n=block_n, block_k=2048, num_warps=8)
    return Tiles("gemv", block_n=block_n, block_k=512)


def _skinny_tiles(n: int, k: int) -> Tiles:
    """Split as long as every program still has a multiprocessor to itself, or a long way to go."""
    is_large = n * k >= _LARGE
    block_n, block_k = (64 if is_large else 32), 128
    num_tiles, split_k = -(-n // block_n), 1
    while 4 * block_k <= k // (2 * split_k) and (
        2 * num_tiles * split_k <= _MULTIPROCESSORS
        or (num_tiles <= _MULTIPROCESSORS and k // split_k > _LONG)
    ):
        split_k *= 2
    return Tiles("skinny", block_n=block_n, block_k=block_k, split_k=split_k, num_stages=4 if is_large else 5)
