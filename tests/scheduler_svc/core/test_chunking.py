"""The budget of a step, and the length of a burst."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_svc.core.chunking import MIN_CHUNK_TOKENS, chunk_budget, decode_burst, share_budget


@given(st.lists(st.integers(1, 100), max_size=10), st.integers(-5, 300), st.integers(0, 120))
def test_the_whole_budget_is_used(left: list[int], budget: int, short: int) -> None:
    sizes = share_budget(left, budget, short)
    assert sum(sizes) == min(max(budget, 0), sum(left))
    assert all(0 <= size <= num_left for size, num_left in zip(sizes, left, strict=True))


def test_prompts_are_served_in_order() -> None:
    assert share_budget([10, 30, 20], 45, short=0) == [10, 30, 5]


def test_short_prompts_overtake_a_long_one_within_half_the_budget() -> None:
    assert share_budget([1000, 30, 2000, 40, 50], 200, short=64) == [100, 30, 0, 40, 30]


def test_prompts_are_cut_so_that_a_step_keeps_the_target() -> None:
    def budget(step_s: float, prefill_token_s: float) -> int:
        return chunk_budget(2048, step_s=step_s, decode_step_s=0.01, prefill_token_s=prefill_token_s)

    assert budget(0.05, 1e-4) == 400
    assert budget(0.05, 1e-6) == 2048
    assert budget(0.005, 1e-4) == 100, "as long as decoding takes"
    assert budget(0.005, 1e-3) == MIN_CHUNK_TOKENS
    assert budget(0.0, 1e-4) == budget(0.05, 0.0) == 2048


@pytest.mark.parametrize(
    ("step_s", "steps"), [(0.0, 1), (0.02, 1), (0.008, 1), (0.004, 2), (0.001, 8), (0.0001, 16)]
)
def test_a_burst_takes_about_its_time_and_at_least_one_step(step_s: float, steps: int) -> None:
    assert decode_burst(step_s, 0.008, 16) == steps
