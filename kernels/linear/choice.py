"""Which kernel computes a product, and with which tiles: the one place to change after measuring.

`python -m benchmarks.kernels_layer` prints the best tiles it found for every product of two models.
"""

from dataclasses import dataclass
from typing import Literal

_MULTIPROCESSORS = 132
_MAX_ROWS = 16
_LARGE = 1 << 24
_LONG = 4096
# Of the stream kernel: rows of a large product up to which reading the weights takes longest, and columns of a tile.
_MAX_STREAMED_ROWS = 128
MOST_ROWS = 2 * _MAX_STREAMED_ROWS
"""Of x; more always go to torch's own product."""
_STREAMED_BLOCK_K = 64


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a product is cut: `gemv` takes one row of x and no split, `skinny` up to 16 rows, `stream` any."""

    kernel: Literal["gemv", "skinny", "stream"]
    block_n: int
    """Weight rows per program; of `stream`, gate and up together."""
    block_k: int
    """Elements of each per iteration."""
    split_k: int = 1
    """Programs that share a product's elements."""
    num_warps: int = 4
    num_stages: int = 4
    block_m: int = 16
    """Rows of x that a program of `stream` has room for."""


def choose(m: int, n: int, k: int, *, is_gated: bool = False, multiprocessors: int = 0) -> Tiles | None:
    """Tiles for x [m, k] and weights [n, k], or gated [2n, k]; None for torch's own matrix product.

    multiprocessors: of a Hopper GPU, if the operands are such that the stream kernel can take them.
    """
    if m == 1:
        return _gemv_tiles(n, k, is_gated)
    rows = n * (2 if is_gated else 1)
    if m > _MAX_ROWS:
        return _stream_tiles(m, rows, k, is_gated, multiprocessors)
    # Gate and up of a large product are tiles enough for `skinny` to keep every multiprocessor busy.
    is_large_gated = is_gated and rows * k >= _LARGE
    streamed = None if is_large_gated else _stream_tiles(m, rows, k, is_gated, multiprocessors)
    return streamed or _skinny_tiles(n, k)


def _gemv_tiles(n: int, k: int, is_gated: bool) -> Tiles:
    """Few weight rows per program, and of those as much at a time as hides the way from memory; short ones whole."""
    block_n = 2 if is_gated else 4
    if k <= 1024:
        return Tiles("gemv", block_n=4, block_k=1024)
    if k <= 2048 and n < 4096:
        return Tiles("gemv", block_n=2, block_k=2048)
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


def _stream_tiles(m: int, rows: int, k: int, is_gated: bool, multiprocessors: int) -> Tiles | None:
    """One tile per program, of as few weight rows as leave every program a multiprocessor, or a share of its sum.

    None where cuBLAS was not slower: when arithmetic takes longest, or when many tiles would come in turn.
    """
    is_large = rows * k >= _LARGE
    if m > (_MAX_STREAMED_ROWS if is_large else MOST_ROWS):
        return None
    columns = min(128, max(32, 1 << (m - 1).bit_length()))
    has_few_columns = columns <= 64
    tiles = {block: -(-rows // block) * -(-m // columns) for block in (64, 128, 256)}
    sizes = [64, 128, *([256] if is_gated else [])]
    if has_few_columns and (is_large or 2 * tiles[64] > multiprocessors):
        sizes.remove(64)
    block = next((size for size in sizes if tiles[size] <= multiprocessors), None)
    if block is None:
        return None
    programs, split = tiles[block], 1
    # Sums of 128 columns take long to exchange, and those of gate and up twice as long.
    while (
        not is_gated
        and 2 * programs <= multiprocessors
        and (has_few_columns or 3 * programs < multiprocessors or k // split > _LONG)
        and columns // split > 8
        and k // split >= 8 * _STREAMED_BLOCK_K
    ):
        programs, split = 2 * programs, 2 * split
    if 3 * programs < multiprocessors:
        return None
    # A small program leaves room for the next kernel's, which can begin while this one ends.
    room = (108 if block == 64 and has_few_columns else 204) << 10
    return Tiles(
        "stream", block_n=block, block_k=_STREAMED_BLOCK_K, split_k=split, block_m=columns,
        num_warps=4 if block <= 128 and block * columns <= 8192 else 8,
        num_stages=room // (2 * (block + columns) * _STREAMED_BLOCK_K),
    )  # fmt: skip
