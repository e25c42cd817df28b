"""The kernels between logits and tokens compile for the GPU: the interpreter runs code that the compiler refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_MOST_SHARED_BYTES = 48 << 10
_READERS = ("score_kernel", "survey_kernel", "draw_kernel", "_chunk_kernel")
"""Read all logits: what they share is for their reductions; a tile that changed its layout would take kilobytes."""


@pytest.mark.slow
def test_every_kernel_compiles_and_readers_keep_their_tiles_in_registers() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.hopper_sampling"],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert not {name: error for name, error in found.items() if isinstance(error, str)}
    assert max(found.values()) <= _MOST_SHARED_BYTES
    assert max(size for name, size in found.items() if name.startswith(_READERS)) <= 1024
