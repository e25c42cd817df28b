"""The kernel that measures reading: it must look at every byte, or its rate would flatter."""

import torch

from kernels.bench.read_kernel import read_all

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def test_every_word_can_change_the_result() -> None:
    source = torch.zeros(3 * 32768, dtype=torch.uint8, device=DEVICE)
    for at in (0, 32767, 32768, 3 * 32768 - 4):
        source.zero_()
        source[at] = 1
        found = read_all(source)
        assert found.count_nonzero() == 1
        assert found[at // 32768] == source.view(torch.int32)[at // 4]
