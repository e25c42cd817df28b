"""Greedy tokens and log-probabilities are transformers', alone and in a mixed batch over scattered blocks."""

import random
from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import ARCHITECTURES, checkpoint
from tests.support.transformers_reference import greedy_tokens, reference_model
from tests.support.worker_driver import DrivenRow, WorkerDriver, greedy, make_runner

NUM_TOKENS = 12


def random_prompts(count: int, seed: int, longest: int = 700) -> list[list[int]]:
    rng = random.Random(seed)
    lengths = [1, 2, 15, 16, 17, longest, *(rng.randint(1, longest) for _ in range(count - 6))]
    return [[rng.randrange(5, 760) for _ in range(length)] for length in lengths]


def rows_for(prompts: list[list[int]]) -> list[DrivenRow]:
    return [DrivenRow(prompt, NUM_TOKENS, greedy(logprobs=1)) for prompt in prompts]


def reference_logprobs(directory: Path, prompt: list[int], tokens: list[int]) -> list[float]:
    """Of each of `tokens`, given the prompt and those before it."""
    with torch.inference_mode():
        logits = reference_model(directory)(torch.tensor([prompt + tokens])).logits[0]
    logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_20_prompts_alone_and_in_a_mixed_batch_of_32(architecture: str) -> None:
    directory = checkpoint(architecture)
    prompts = random_prompts(20, seed=len(architecture))
    expected = [greedy_tokens(directory, prompt, NUM_TOKENS) for prompt in prompts]

    driver = WorkerDriver(
        make_runner(directory, max_rows=32, block_size=16, max_step_tokens=32 * 200), seed=1
    )
    alone = rows_for(prompts)
    driver.run(alone, at_once=1)
    assert [row.tokens for row in alone] == expected

    mixed = rows_for(prompts + prompts[:12])
    random.Random(2).shuffle(mixed)
    driver.run(mixed, at_once=32, max_chunk=200, max_decode_steps=3)
    by_prompt = {tuple(prompt): tokens for prompt, tokens in zip(prompts, expected, strict=True)}
    assert all(row.tokens == by_prompt[tuple(row.prompt)] for row in mixed)

    for row in (*alone[:6], *mixed[:6]):
        wanted = reference_logprobs(directory, row.prompt, row.tokens)
        assert row.logprobs == pytest.approx(wanted, abs=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_on_the_gpu_in_float32_tokens_are_those_of_the_cpu(architecture: str) -> None:
    """Alone and in one chunk; in chunks beside others, in graphs of every kind, over scattered blocks."""
    directory = checkpoint(architecture)
    prompts = random_prompts(20, seed=len(architecture))
    expected = [greedy_tokens(directory, prompt, NUM_TOKENS) for prompt in prompts]
    runner = make_runner(
        directory, max_rows=32, max_step_tokens=4096, device="cuda", dtype="float32", kv_cache_memory="256MiB"
    )
    driver = WorkerDriver(runner, seed=1)
    alone, mixed = rows_for(prompts), rows_for(prompts)
    driver.run(alone, at_once=1)
    driver.run(mixed, at_once=16, max_chunk=200, max_decode_steps=3)
    for rows in (alone, mixed):
        assert [row.tokens for row in rows] == expected
    for row in mixed[:6]:
        assert row.logprobs == pytest.approx(reference_logprobs(directory, row.prompt, row.tokens), abs=1e-3)


def test_rows_that_come_and_go_leave_nothing_behind() -> None:
    """More rows than the table holds, one after the other: blocks and rows are used again and again."""
    directory = checkpoint("Qwen3ForCausalLM")
    prompts = random_prompts(24, seed=9, longest=120)
    runner = make_runner(directory, max_rows=4, block_size=16)
    rows = rows_for(prompts)
    WorkerDriver(runner, seed=3).run(rows, at_once=4, max_chunk=40, max_decode_steps=4)
    assert [row.tokens for row in rows] == [
        greedy_tokens(directory, prompt, NUM_TOKENS) for prompt in prompts
    ]
    assert (runner.rows.num_used, runner.rows.num_blocks_used) == (0, 0)
