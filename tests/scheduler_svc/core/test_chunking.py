"""The budget of a step, and the length of a burst."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_svc.core.chunking import decode_burst, share_budget


@given(st.lists(st.integers(1, 100), max_size=10), st.integers(-5, 300))
def test_the_oldest_prompts_get_what_there_is(left: list[int], budget: int) -> None:
    sizes = share_budget(left, budget)
    assert sum(sizes) == min(max(budget, 0), sum(left))
    assert all(size >= 1 for size in sizes)
    # All but the last are served wholly.
    assert sizes[:-1] == left[: len(sizes) - 1] if sizes else True


@pytest.mark.parametrize(
    ("step_s", "steps"), [(0.0, 1), (0.02, 1), (0.008, 1), (0.004, 2), (0.001, 8), (0.0001, 16)]
)
def test_a_burst_takes_about_its_time_and_at_least_one_step(step_s: float, steps: int) -> None:
    assert decode_burst(step_s, 0.008, 16) == steps
