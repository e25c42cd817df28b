"""A worker whose KV cache has 8 bits a number: more tokens, nearly the same log-probabilities, still reproducible."""

import math

import pytest
import torch

from kernels.kv_scales import FP8, FP8_MAX
from tests.gpu_worker.test_greedy_tokens import random_prompts, reference_logprobs, rows_for
from tests.support.checkpoints import ARCHITECTURES, checkpoint
from tests.support.worker_driver import WorkerDriver, make_runner


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tokens_do_not_depend_on_chunks_and_their_logprobs_hardly_change(architecture: str) -> None:
    directory = checkpoint(architecture)
    prompts = random_prompts(10, seed=3, longest=300)
    runner = make_runner(directory, max_rows=32, max_step_tokens=4096, kv_cache_dtype="fp8")
    assert all(cache.dtype == FP8 for cache in (*runner._cache.keys, *runner._cache.values))
    driver = WorkerDriver(runner, seed=1)
    alone, mixed = rows_for(prompts), rows_for(prompts)
    driver.run(alone, at_once=1)
    driver.run(mixed, at_once=8, max_chunk=50, max_decode_steps=3)
    assert [row.tokens for row in alone] == [row.tokens for row in mixed]
    errors = []
    for row in alone:
        wanted = reference_logprobs(directory, row.prompt, row.tokens)
        errors += [abs(found - exact) for found, exact in zip(row.logprobs, wanted, strict=True)]
    assert max(errors) < 0.2
    assert math.fsum(errors) / len(errors) < 0.05


def test_scales_leave_room_and_use_the_range() -> None:
    runner = make_runner(checkpoint("Qwen2ForCausalLM"), max_rows=4, kv_cache_dtype="fp8")
    WorkerDriver(runner).run(rows_for(random_prompts(6, seed=4)), at_once=2)
    for cache in (*runner._cache.keys, *runner._cache.values):
        largest = cache.float().abs().amax(dim=(0, 2, 3))
        assert (largest < FP8_MAX).all()
        assert (largest > FP8_MAX / 32).all()


def test_the_same_memory_holds_four_times_the_tokens_of_float32() -> None:
    directory = checkpoint("LlamaForCausalLM")
    wide = make_runner(directory, max_rows=4, kv_cache_memory="8MiB")
    narrow = make_runner(directory, max_rows=4, kv_cache_memory="8MiB", kv_cache_dtype="fp8")
    assert narrow._cache.num_blocks // 4 == wide._cache.num_blocks
    assert narrow.limits.kv_cache_bytes <= 8 << 20
    assert list(narrow.limits.capabilities) == ["kv_fp8"]
    assert not wide.limits.capabilities
