"""Kernels compile for the GPU: the interpreter runs code that the compiler refuses, and Gluon not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_MOST_SHARED_BYTES = 227 << 10
_TILE_BYTES = 2 * 64 * 128 * 2
"""Keys and values of a tile of 64 tokens."""


@pytest.fixture(scope="module")
def shared_memory() -> dict[str, int | str]:
    """Bytes of shared memory of each launch, or what the compiler said."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.hopper_compiler"],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, int | str] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_every_kind_of_launch_compiles_and_fits(shared_memory: dict[str, int | str]) -> None:
    refused = {name: found for name, found in shared_memory.items() if isinstance(found, str)}
    assert not refused
    assert all(int(found) <= _MOST_SHARED_BYTES for found in shared_memory.values())


@pytest.mark.slow
def test_every_further_stage_holds_one_more_tile(shared_memory: dict[str, int | str]) -> None:
    """A block table looked up in the loads' own turn would take the stages instead, and nothing would be in flight."""
    two, three, four = (int(shared_memory[f"stages {stages}"]) for stages in (2, 3, 4))
    assert three - two >= _TILE_BYTES
    assert four - three >= _TILE_BYTES
