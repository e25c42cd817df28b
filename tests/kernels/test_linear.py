"""Products of few rows against the plain-torch references, in the interpreter or on the GPU."""

import pytest
import torch

from kernels.linear import Norm, gate_up_silu, linear, linear_add, reference
from kernels.linear.choice import Tiles, choose
from kernels.linear.kernel import tiled_linear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter truncates where the GPU rounds to bfloat16.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE == "cuda" else [])]
TILES = [
    Tiles("gemv", block_n=4, block_k=128),
    Tiles("gemv", block_n=8, block_k=512),
    Tiles("skinny", block_n=16, block_k=64),
    Tiles("skinny", block_n=32, block_k=128, split_k=4),
    Tiles("skinny", block_n=64, block_k=128, split_k=2, num_stages=3),
]
# Whole tiles, and remainders in both directions.
SHAPES = [(128, 512), (70, 328), (2, 64)]


def random(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Finished when this returns, since kernels read weights before the kernel ahead of them has finished."""
    made = (torch.randn(shape, device=DEVICE) / shape[-1] ** 0.25).to(dtype)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return made


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.dtype == wanted.dtype
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[got.dtype]
    torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tiles", TILES)
def test_every_form_is_that_of_the_reference(
    tiles: Tiles, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    n, k = shape
    weight, bias = random(n, k, dtype=dtype), random(n, dtype=dtype)
    for m in (1,) if tiles.kernel == "gemv" else (1, 5, 16):
        x, residual = random(m, k, dtype=dtype), random(m, n, dtype=dtype)
        assert_close(tiled_linear(x, weight, tiles), reference.linear(x, weight, None))
        assert_close(tiled_linear(x, weight, tiles, bias=bias), reference.linear(x, weight, bias))
        assert_close(
            tiled_linear(x, weight, tiles, residual=residual), reference.linear_add(x, weight, residual)
        )
        assert_close(tiled_linear(x, weight, tiles, is_gated=True), reference.gate_up_silu(x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tiles", TILES[:2])
def test_a_norm_in_the_same_launch(tiles: Tiles, shape: tuple[int, int], dtype: torch.dtype) -> None:
    n, k = shape
    x, weight = random(1, k, dtype=dtype), random(n, k, dtype=dtype)
    norm = Norm(random(k, dtype=dtype), 1e-6)
    assert_close(tiled_linear(x, weight, tiles, norm=norm), reference.linear(x, weight, None, norm))
    assert_close(
        tiled_linear(x, weight, tiles, norm=norm, is_gated=True), reference.gate_up_silu(x, weight, norm)
    )


@pytest.mark.parametrize("tiles", [TILES[0], TILES[3]])
def test_rows_that_lie_apart(tiles: Tiles) -> None:
    m = 1 if tiles.kernel == "gemv" else 3
    x = random(2 * m, 300, dtype=torch.float32)[::2, 20:276]
    weight = random(40, 600, dtype=torch.float32)[:, 100:356]
    residual = random(m, 80, dtype=torch.float32)[:, 40:]
    assert_close(tiled_linear(x, weight, tiles, residual=residual), reference.linear_add(x, weight, residual))


def test_a_split_gives_the_same_bits_again() -> None:
    x, weight = random(4, 512, dtype=torch.float16), random(64, 512, dtype=torch.float16)
    first = tiled_linear(x, weight, TILES[3])
    assert all(torch.equal(tiled_linear(x, weight, TILES[3]), first) for _ in range(3))


def test_what_the_kernels_cannot_do_is_refused() -> None:
    x, weight = random(17, 64, dtype=torch.float32), random(8, 64, dtype=torch.float32)
    with pytest.raises(ValueError, match="17 rows"):
        tiled_linear(x, weight, TILES[2])
    with pytest.raises(ValueError, match="2 rows"):
        tiled_linear(x[:2], weight, TILES[0])
    with pytest.raises(ValueError, match="adjacent"):
        tiled_linear(x[:1], weight.t().contiguous().t(), TILES[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [0, 1, 3, 40])
def test_the_op_itself(m: int, dtype: torch.dtype) -> None:
    x, weight = random(m, 64, dtype=dtype), random(48, 64, dtype=dtype)
    residual, bias = random(m, 48, dtype=dtype), random(48, dtype=dtype)
    assert_close(linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
    wanted = x @ weight.t() + residual
    assert_close(linear_add(x, weight, residual), wanted)
    gate, up = (x @ weight.t()).chunk(2, dim=-1)
    assert_close(gate_up_silu(x, weight), torch.nn.functional.silu(gate) * up)


def test_few_rows_have_tiles_that_cover_the_sum_and_many_rows_have_none() -> None:
    for n, k in [(1024, 1024), (6144, 4096), (4096, 14336), (128256, 4096), (896, 4864), (64, 64)]:
        for m in range(1, 17):
            tiles = choose(m, n, k)
            assert tiles is not None
            assert tiles.kernel == "skinny" or m == 1
            assert tiles.split_k == 1 or k // tiles.split_k >= tiles.block_k
        assert choose(200, n, k) is None
