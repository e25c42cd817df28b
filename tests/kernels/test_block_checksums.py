"""The kernel's checksums are the reference's, to the bit, and tell blocks apart that differ in one bit anywhere."""

import pytest
import torch

from kernels.block_checksums import kernel, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(("layers", "elements"), [(1, 16), (3, 2048), (5, 5000)])
def test_the_kernel_sums_as_the_reference_does(layers: int, elements: int) -> None:
    caches = [
        torch.randint(-(2**15), 2**15, (layers, 7, elements), dtype=torch.int16, device=DEVICE)
        for _ in range(2)
    ]
    block_ids = torch.tensor([6, 0, 3, 3], device=DEVICE)
    sums = kernel.block_checksums(caches, block_ids)
    assert torch.equal(sums, reference.block_checksums(caches, block_ids))
    assert sums[2] == sums[3]


def test_no_block_has_no_sum() -> None:
    cache = torch.zeros((1, 2, 16), dtype=torch.int16, device=DEVICE)
    assert kernel.block_checksums([cache], torch.zeros(0, dtype=torch.int64, device=DEVICE)).shape == (0,)


@pytest.mark.parametrize("place", [0, 99])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("which", [0, 1])
def test_one_bit_changes_the_sum(which: int, layer: int, place: int) -> None:
    caches = [torch.randint(-(2**15), 2**15, (2, 2, 100), dtype=torch.int16, device=DEVICE) for _ in range(2)]
    block_ids = torch.tensor([1], device=DEVICE)
    before = kernel.block_checksums(caches, block_ids)
    caches[which][layer, 1, place] ^= 1
    assert kernel.block_checksums(caches, block_ids) != before
