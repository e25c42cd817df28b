"""The reference's random bits are Triton's, so that a seed will mean the same on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from kernels.sampling.philox import philox, to_uniform

PROGRAM = """
import torch, triton, triton.language as tl

@triton.jit
def kernel(out, uniform, seed, position, n: tl.constexpr):
    token = tl.arange(0, n)
    zero = tl.zeros((n,), tl.uint32)
    bits, _, _, _ = tl.philox(seed, token.to(tl.uint32), zero + position, zero, zero)
    tl.store(out + token, bits.to(tl.int64))
    tl.store(uniform + token, tl.uint_to_uniform_float(bits))

for seed in (0, 1, 123456789, 2**40 + 17, -3):
    out, uniform = torch.zeros(64, dtype=torch.int64), torch.zeros(64)
    kernel[(1,)](out, uniform, torch.tensor(seed).item(), 41, 64)
    print(*out.tolist())
    print(*uniform.tolist())
"""


def test_bits_and_uniforms_equal_tritons(tmp_path: Path) -> None:
    # The interpreter reads the kernel's source, so it must be in a file.
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = iter(run.stdout.splitlines())
    for seed in (0, 1, 123456789, 2**40 + 17, -3):
        bits = philox(torch.tensor(seed), torch.arange(64), torch.tensor(41))
        assert bits.tolist() == [int(word) % 2**32 for word in next(lines).split()]
        assert to_uniform(bits).tolist() == [float(word) for word in next(lines).split()]


def test_known_answer_of_the_paper() -> None:
    """Random123's kat_vectors: philox4x32 10, counter and key all zero, begins with 6627e8d5."""
    assert philox(torch.tensor(0), torch.tensor(0), torch.tensor(0)).item() == 0x6627E8D5
