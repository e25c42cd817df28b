"""The reference's random numbers are Triton's, so that a seed will mean the same on a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from kernels.sampling.philox import philox, token_uniforms
from kernels.sampling.reference import gumbel

PROGRAM = """
import torch, triton, triton.language as tl
from kernels.sampling.noise import gumbel_of, gumbel_tile

@triton.jit
def kernel(words, tile, single, seed_ptr, position_ptr, n: tl.constexpr):
    seed, position = tl.load(seed_ptr), tl.load(position_ptr)
    quads = tl.arange(0, n // 4)
    zero = tl.zeros((n // 4,), tl.uint32)
    a, b, c, d = tl.philox(seed, quads.to(tl.uint32), zero + position.to(tl.uint32), zero, zero)
    tl.store(words + 4 * quads, a.to(tl.int64))
    tl.store(words + 4 * quads + 1, b.to(tl.int64))
    tl.store(words + 4 * quads + 2, c.to(tl.int64))
    tl.store(words + 4 * quads + 3, d.to(tl.int64))
    at = tl.arange(0, n // 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(tile + at, gumbel_tile(seed, position, 0, n // 16, 16))
    tl.store(single + tl.arange(0, n), gumbel_of(seed, position, tl.arange(0, n)))

for seed in (0, 1, 123456789, 2**40 + 17, -3):
    words, tile, single = torch.zeros(64, dtype=torch.int64), torch.zeros(64), torch.zeros(64)
    kernel[(1,)](words, tile, single, torch.tensor(seed), torch.tensor(41), 64)
    print(*words.tolist())
    print(*tile.tolist())
    print(*single.tolist())
"""


def test_bits_and_noise_equal_tritons(tmp_path: Path) -> None:
    # The interpreter reads the kernel's source, so it must be in a file.
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = iter(run.stdout.splitlines())
    for seed in (0, 1, 123456789, 2**40 + 17, -3):
        words = torch.stack(philox(torch.tensor(seed), torch.arange(16), torch.tensor(41)), dim=-1)
        assert words.flatten().tolist() == [int(word) % 2**32 for word in next(lines).split()]
        noise = gumbel(64, torch.tensor([seed]), torch.tensor([41]))[0]
        for _ in range(2):
            found = torch.tensor([float(word) for word in next(lines).split()])
            torch.testing.assert_close(found, noise, rtol=2e-6, atol=2e-6)


def test_known_answer_of_the_paper() -> None:
    """Random123's kat_vectors: philox4x32 10, counter and key all zero."""
    zero = torch.tensor(0)
    words = [word.item() for word in philox(zero, zero, zero)]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_every_token_has_its_own_number_whatever_the_vocabulary() -> None:
    seeds, positions = torch.tensor([3, -8]), torch.tensor([5, 2**31])
    wide = token_uniforms(1001, seeds, positions)
    assert torch.equal(token_uniforms(998, seeds, positions), wide[:, :998])
    assert wide.unique().numel() > 0.99 * wide.numel()
    assert bool(((wide > 0) & (wide < 1)).all())


def test_noise_is_finite_at_the_ends() -> None:
    """The smallest number is half a step above 0, the largest one step below 1."""
    uniforms = token_uniforms(200_000, torch.tensor([9]), torch.tensor([1]))
    assert uniforms.min() >= 2.0**-33
    assert uniforms.max() <= 1 - 2.0**-24
    assert abs(uniforms.mean() - 0.5) < 0.005
