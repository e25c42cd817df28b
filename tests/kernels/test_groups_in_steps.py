"""Steps in groups, through the runner and the real attention kernels: the tokens are each row's own."""

import random
from unittest import mock

import pytest

from gpu_worker import prefix_groups
from gpu_worker.model_runner import ModelRunner
from kernels import dispatch
from quire.packing import pack_int32, pack_uint32
from quire.v1 import types_pb2, worker_pb2
from tests.gpu_worker.test_prefix_groups import BLOCK, Unrecorded, collect
from tests.support.checkpoints import checkpoint
from tests.support.transformers_reference import greedy_tokens
from tests.support.worker_driver import make_runner

FAMILIES, ROWS, PREFIX_BLOCKS, NUM_TOKENS = 3, 4, 5, 4
ATTENTION = ("paged_attention", "rope_attention", "rope_kv_write")


def add(
    runner: ModelRunner, tokens: list[list[int]], rows: list[int], prompts: list[list[int]], computed: int
) -> None:
    """Rows of a family, whose first blocks are the family's, the rest each row's own."""
    runner_adds = []
    for row in rows:
        family = row // ROWS
        blocks = [*range(8 * family, 8 * family + PREFIX_BLOCKS), *range(40 + 3 * row, 43 + 3 * row)]
        runner_adds.append(
            worker_pb2.RowAdd(
                row=row, token_ids=pack_int32(prompts[row]), num_prompt_tokens=len(prompts[row]),
                num_computed_tokens=computed, block_ids=pack_int32(blocks),
                max_total_tokens=len(prompts[row]) + NUM_TOKENS,
                sampling=types_pb2.SamplingParams(temperature=0, ignore_eos=True),
            )
        )  # fmt: skip
    counts = [len(prompts[row]) - computed for row in rows]
    collect(runner, tokens, worker_pb2.StepCommand(
        add_rows=runner_adds, prefill_rows=pack_uint32(rows), prefill_num_tokens=pack_uint32(counts)))  # fmt: skip


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
    firsts = list(range(0, len(prompts), ROWS))
    add(runner, tokens, firsts, prompts, 0)
    add(
        runner,
        tokens,
        [row for row in range(len(prompts)) if row not in firsts],
        prompts,
        PREFIX_BLOCKS * BLOCK,
    )
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
