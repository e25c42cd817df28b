"""What is measured before the KV cache is made is as large as what runs and is recorded afterwards."""

import pytest

from gpu_worker.gpu_memory import _DECODED, _largest_step, _Rows
from tests.support.checkpoints import checkpoint
from tests.support.worker_driver import execute, make_runner


@pytest.mark.parametrize(
    ("max_rows", "num_rows", "num_tokens", "positions"),
    [(8, 8, 256, 256), (32, 8, 256, 256), (4, 3, 250, 249)],
)
def test_a_measured_step_has_all_the_positions_that_it_is_to_have(
    max_rows: int, num_rows: int, num_tokens: int, positions: int
) -> None:
    runner = make_runner(checkpoint("LlamaForCausalLM"), max_rows=max_rows, max_step_tokens=256)
    rows = _Rows.of(runner.limits, num_rows, num_tokens)
    result = execute(runner, _largest_step(rows))
    assert not result.errors
    assert result.tokens_computed == positions


def test_prompts_are_no_longer_than_the_model_takes() -> None:
    runner = make_runner(
        checkpoint("LlamaForCausalLM"),
        max_rows=2,
        max_model_len=64,
        max_step_tokens=512,
        kv_cache_memory="8MiB",
    )
    rows = _Rows.of(runner.limits, 2, 512)
    assert rows.tokens == 64 - _DECODED
    assert not execute(runner, _largest_step(rows)).errors
