"""Batches filled up to a recorded size: on a CPU the same packing without a graph, on a GPU the graphs themselves."""

import random

import pytest
import torch

from gpu_worker.mixed_graphs import MixedGraphs, MixedSize
from tests.gpu_worker.test_greedy_tokens import random_prompts
from tests.support.checkpoints import checkpoint
from tests.support.transformers_reference import greedy_tokens
from tests.support.worker_driver import DrivenRow, WorkerDriver, greedy, make_runner

NUM_TOKENS = 12


class Unrecorded(MixedGraphs):
    """Runs what a graph would hold."""

    sizes_used: set[MixedSize]

    def allow(self, tokens: list[int], decoding: list[int]) -> None:
        self._tokens, self._decoding, self.sizes_used = tokens, decoding, set()

    def replay(self, size: MixedSize, packed: torch.Tensor) -> torch.Tensor:
        self.sizes_used.add(size)
        return self._step(self._steps, size, packed)


def test_filling_a_batch_up_changes_no_token() -> None:
    torch.set_num_threads(1)
    directory = checkpoint("Qwen3ForCausalLM")
    prompts = random_prompts(24, seed=5, longest=150)
    runner = make_runner(directory, max_rows=24, block_size=16)
    packed = Unrecorded(runner._steps, runner._steps, runner._device_rows.fill_row, torch.device("cpu"))
    packed.allow([16, 64, 256], [0, 8, 24])
    runner._mixed_graphs = packed
    rows = [DrivenRow(prompt, NUM_TOKENS, greedy()) for prompt in prompts]
    random.Random(1).shuffle(rows)
    WorkerDriver(runner, seed=7).run(rows, at_once=10, max_chunk=60, max_decode_steps=2)
    for row in rows:
        assert row.tokens == greedy_tokens(directory, row.prompt, NUM_TOKENS)
    assert len(packed.sizes_used) >= 4


@pytest.mark.gpu
def test_recorded_steps_give_the_tokens_of_those_that_are_launched() -> None:
    directory = checkpoint("Qwen3ForCausalLM")
    found = []
    for is_recorded in (False, True):
        runner = make_runner(
            directory, max_rows=24, block_size=16, device="cuda", dtype="float32", kv_cache_memory="64MiB"
        )
        if not is_recorded:
            runner._mixed_graphs = MixedGraphs(
                runner._steps, runner._steps, runner._device_rows.fill_row, torch.device("cuda")
            )
        rows = [DrivenRow(prompt, NUM_TOKENS, greedy()) for prompt in random_prompts(24, seed=5, longest=150)]
        WorkerDriver(runner, seed=7).run(rows, at_once=10, max_chunk=60, max_decode_steps=2)
        found.append([row.tokens for row in rows])
        for row in rows:
            assert row.tokens == greedy_tokens(directory, row.prompt, NUM_TOKENS)
    assert found[0] == found[1]
