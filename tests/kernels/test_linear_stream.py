"""The stream kernel against plain torch: emulated on a CPU, as it is on a Hopper GPU."""

from collections.abc import Iterator
from unittest import mock

import pytest
import torch

from kernels.linear import kernel, reference
from kernels.linear.choice import Tiles, choose
from kernels.linear.exchange import EMPTY
from kernels.linear.kernel import is_streamable, tiled_linear
from tests.support.gluon_products import Emulated

IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
DEVICE = "cuda" if IS_HOPPER else "cpu"
DTYPE = torch.bfloat16 if IS_HOPPER else torch.float16
TILES = [
    Tiles("stream", block_n=64, block_k=64, block_m=32, num_stages=3),
    Tiles("stream", block_n=128, block_k=64, block_m=64, split_k=2, num_stages=4),
    Tiles("stream", block_n=64, block_k=64, block_m=64, split_k=8, num_stages=6),
    Tiles("stream", block_n=64, block_k=64, block_m=128, split_k=4, num_stages=8),
    Tiles("stream", block_n=256, block_k=64, block_m=64, num_warps=8, num_stages=5),
]
# Whole tiles, and remainders in every direction.
SHAPES = [(64, 256, 512), (41, 80, 520), (150, 48, 328)]


@pytest.fixture(autouse=True)
def places() -> Iterator[torch.Tensor]:
    """Where programs leave sums for each other; and the emulator, where there is no such GPU."""
    if IS_HOPPER:
        yield kernel._partial_sums(torch.device("cuda", torch.cuda.current_device()))
        return
    empty = torch.full((132 * 128 * 128,), EMPTY, dtype=torch.int32)
    with (
        mock.patch.object(kernel, "stream_kernel", Emulated(kernel.stream_kernel)),
        mock.patch.object(kernel, "_partial_sums", return_value=empty),
    ):
        yield empty


def random(*shape: int) -> torch.Tensor:
    made = (torch.randn(shape, device=DEVICE) / shape[-1] ** 0.25).to(DTYPE)
    if IS_HOPPER:
        torch.cuda.synchronize()
    return made


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(
        got, wanted, rtol=3e-2 if IS_HOPPER else 4e-3, atol=3e-2 if IS_HOPPER else 8e-3
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tiles", TILES)
def test_every_form_is_that_of_the_reference(
    tiles: Tiles, shape: tuple[int, int, int], places: torch.Tensor
) -> None:
    m, n, k = shape
    x, weight, bias, residual = random(m, k), random(n, k), random(n), random(m, n)
    assert_close(tiled_linear(x, weight, tiles), reference.linear(x, weight, None))
    assert_close(tiled_linear(x, weight, tiles, bias=bias), reference.linear(x, weight, bias))
    assert_close(tiled_linear(x, weight, tiles, residual=residual), reference.linear_add(x, weight, residual))
    assert_close(tiled_linear(x, weight, tiles, is_gated=True), reference.gate_up_silu(x, weight))
    assert (places == EMPTY).all()


def test_rows_that_lie_apart() -> None:
    x, weight = random(80, 512)[::2, 128:384], random(128, 512)[:, 256:]
    residual = random(40, 256)[:, 128:]
    assert is_streamable(x, weight)
    assert_close(
        tiled_linear(x, weight, TILES[1], residual=residual), reference.linear_add(x, weight, residual)
    )


def test_a_split_gives_the_same_bits_again() -> None:
    x, weight = random(64, 512), random(64, 512)
    first = tiled_linear(x, weight, TILES[2])
    assert all(torch.equal(tiled_linear(x, weight, TILES[2]), first) for _ in range(3))


def test_programs_that_could_not_all_run_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="wait for each other"):
        tiled_linear(random(64, 1024), random(64 * 70, 1024), TILES[3])


def test_what_lies_awry_is_not_streamable() -> None:
    x, weight = random(32, 64), random(48, 64)
    assert is_streamable(x, weight)
    assert not is_streamable(x, random(40, 64))
    assert not is_streamable(random(32, 72)[:, 4:68], weight)
    assert not is_streamable(random(32, 68)[:, :64], weight)
    assert not is_streamable(random(64, 32).t(), weight)


def test_tiles_leave_every_program_a_multiprocessor() -> None:
    for n, k in [(1024, 2048), (4096, 1024), (6144, 4096), (4096, 14336), (14336, 4096), (9728, 2560)]:
        for m in range(2, 257):
            for is_gated in (False, True):
                tiles = choose(m, n, k, is_gated=is_gated, multiprocessors=132)
                if tiles is None or (m <= 16 and tiles.kernel == "skinny"):
                    continue
                rows = 2 * n if is_gated else n
                programs = -(-rows // tiles.block_n) * -(-m // tiles.block_m) * tiles.split_k
                assert tiles.kernel == "stream"
                assert 44 <= programs <= 132
                assert k // tiles.split_k >= 4 * tiles.block_k
                assert tiles.split_k == 1 or tiles.block_n * tiles.block_m <= 128 * 128


def test_few_rows_are_streamed_unless_they_are_gated_and_large_or_have_many_tiles() -> None:
    for m in (2, 16):
        for n, k, is_gated in [
            (4096, 1024, False),
            (1024, 2048, False),
            (3072, 1024, True),
            (4096, 14336, False),
        ]:
            assert (choose(m, n, k, is_gated=is_gated, multiprocessors=132) or TILES[0]).kernel == "stream"
        for n, k, is_gated in [(14336, 4096, True), (128256, 4096, False)]:
            assert (choose(m, n, k, is_gated=is_gated, multiprocessors=132) or TILES[0]).kernel == "skinny"


def test_without_hopper_or_with_many_rows_torch_computes_the_product() -> None:
    assert choose(64, 4096, 4096) is None
    assert choose(512, 4096, 1024, multiprocessors=132) is None
    assert choose(192, 6144, 4096, multiprocessors=132) is None
    assert choose(64, 128256, 4096, multiprocessors=132) is None
    assert choose(64, 64, 64, multiprocessors=132) is None
