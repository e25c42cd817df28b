"""Kernels that begin before those ahead of them are done change no token: steps of few rows, in a row, on a GPU."""

import json
from pathlib import Path
from unittest import mock

import pytest

from quire.bench.shapes import shapes
from tests.gpu_worker.test_greedy_tokens import random_prompts
from tests.support.worker_driver import DrivenRow, WorkerDriver, greedy, make_runner

NUM_TOKENS = 120


def tokens_of(directory: Path) -> list[list[int]]:
    """What rows get that run alone, and a few and more side by side, in recorded steps, several a command."""
    runner = make_runner(
        directory, load_format="dummy", device="cuda", dtype="bfloat16", max_rows=16, block_size=16, max_model_len=1024,
        kv_cache_memory="256MiB",
    )  # fmt: skip
    driver, found = WorkerDriver(runner, seed=7), []
    for at_once in (1, 2, 8, 16):
        prompts = random_prompts(16, seed=at_once, longest=500)
        rows = [DrivenRow(prompt, NUM_TOKENS, greedy(ignore_eos=True)) for prompt in prompts]
        driver.run(rows, at_once=at_once, max_chunk=100, max_decode_steps=8)
        found += [row.tokens for row in rows]
    return found


@pytest.mark.gpu
@pytest.mark.parametrize("shape", ["qwen3-0.6b", "llama-8b"])
def test_tokens_are_those_of_kernels_that_run_one_after_the_other(shape: str, tmp_path: Path) -> None:
    few = {"num_hidden_layers": 3, "vocab_size": 4096, "bos_token_id": 1, "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(shapes()[shape] | few))
    found = tokens_of(tmp_path)
    assert all(len(tokens) == NUM_TOKENS for tokens in found)
    with mock.patch("kernels.pdl.options", return_value={"PDL": False, "launch_pdl": False}):
        assert tokens_of(tmp_path) == found
