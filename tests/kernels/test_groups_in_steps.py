"""Steps in groups, through the runner and the real attention kernels: the tokens are each row's own."""

import random
from unittest import mock

import pytest

from gpu_worker import prefix_groups
from kernels import dispatch
from quire.v1 import worker_pb2
from tests.support.checkpoints import checkpoint
from tests.support.sharing_rows import Unrecorded, collect, prefill_sharing
from tests.support.transformers_reference import greedy_tokens
from tests.support.worker_driver import make_runner

BLOCK, FAMILIES, ROWS, PREFIX_BLOCKS, NUM_TOKENS = 16, 3, 4, 5, 4
ATTENTION = ("paged_attention", "rope_attention", "rope_kv_write")


def blocks_of(row: int) -> list[int]:
    """A row's first blocks are its family's."""
    first = 8 * (row // ROWS)
    return [*range(first, first + PREFIX_BLOCKS), *range(40 + 3 * row, 43 + 3 * row)]


def test_rows_in_more_groups_than_a_step_looks_at_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_groups, "_LEAST_SAVED", 1)
    monkeypatch.setattr(prefix_groups, "_SPARE_GROUPS", 0)
    directory = checkpoint("Qwen3ForCausalLM")
    rng = random.Random(4)
    stems = [[rng.randrange(200) for _ in range(PREFIX_BLOCKS * BLOCK)] for _ in range(FAMILIES)]
    prompts = [
        [*stems[row // ROWS], *(rng.randrange(200) for _ in range(rng.randint(1, 30)))]
        for row in range(FAMILIES * ROWS)
    ]
    runner = make_runner(directory, max_rows=64, block_size=BLOCK)
    unrecorded = Unrecorded(runner._steps, runner._steps)
    unrecorded.allow(64)
    runner._graphs = unrecorded
    tokens: list[list[int]] = [[] for _ in prompts]
    firsts = range(0, len(prompts), ROWS)
    others = [row for row in range(len(prompts)) if row not in firsts]
    for rows, computed in ((firsts, 0), (others, PREFIX_BLOCKS * BLOCK)):
        blocks = {row: blocks_of(row) for row in rows}
        prefill_sharing(runner, tokens, prompts, blocks, num_computed=computed, num_tokens=NUM_TOKENS)
    module = dispatch._module
    kernels = mock.patch.object(
        dispatch, "_module", lambda op, device: module(op, "cuda" if op in ATTENTION else device)
    )
    with kernels:
        while min(map(len, tokens)) < NUM_TOKENS:
            collect(runner, tokens, worker_pb2.StepCommand(decode_steps=1))
    assert any(unrecorded.in_groups)
    assert [row[:NUM_TOKENS] for row in tokens] == [
        greedy_tokens(directory, prompt, NUM_TOKENS) for prompt in prompts
    ]
