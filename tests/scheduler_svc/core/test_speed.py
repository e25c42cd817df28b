"""What a replica's results say of its speed: what commands cost beside their steps."""

import pytest

from quire.v1 import worker_pb2
from scheduler_svc.core.chunking import chunk_budget, decode_burst
from scheduler_svc.core.speed import Speed


def answer(speed: Speed, *, overhead_s: float, step_s: float, intervals: int = 200) -> tuple[float, int]:
    """Commands one after the other, each of which takes the overhead or its steps' time, whichever is longer.

    Returns the share of the time in which the device worked, and the steps of the longest command.
    """
    busy_s = clock_s = 0.0
    longest = 0
    for _ in range(intervals):
        steps = decode_burst(step_s, 0.001, 16, command_s=speed.command_s)
        interval_s = max(overhead_s, steps * step_s)
        speed.note_interval(interval_s, steps * step_s)
        busy_s, clock_s, longest = busy_s + steps * step_s, clock_s + interval_s, max(longest, steps)
    return busy_s / clock_s, longest


@pytest.mark.parametrize(
    ("overhead_s", "step_s", "longest"),
    [(0.0005, 0.0006, 1), (0.00125, 0.0006, 2), (0.0017, 0.0006, 3), (0.0023, 0.0006, 4), (0.002, 0.013, 1)],
)
def test_commands_get_as_many_steps_as_hide_what_they_cost(
    overhead_s: float, step_s: float, longest: int
) -> None:
    share, steps = answer(Speed(), overhead_s=overhead_s, step_s=step_s)
    assert steps == longest
    assert share > 0.9


def test_a_command_that_costs_more_than_a_few_steps_is_not_made_long() -> None:
    assert answer(Speed(), overhead_s=0.05, step_s=0.0006)[1] == 4
    assert answer(Speed(), overhead_s=0.05, step_s=0.0012)[1] == 2
    assert answer(Speed(), overhead_s=0.05, step_s=0.004)[1] == 1


def test_results_that_were_held_up_make_no_command_of_long_steps_longer() -> None:
    speed = Speed()
    for _ in range(4):
        speed.note_interval(0.05, 0.011)
    assert decode_burst(0.011, 0.001, 16, command_s=speed.command_s) == 1
    assert decode_burst(0.0006, 0.001, 16, command_s=speed.command_s) == 4


def test_without_bursts_nothing_is_hidden() -> None:
    assert decode_burst(0.0006, 0.0, 16, command_s=0.002) == 1


def test_what_commands_cost_is_forgotten_where_it_is_not_seen_again() -> None:
    speed = Speed()
    assert answer(speed, overhead_s=0.00125, step_s=0.0006)[1] == 2
    answer(speed, overhead_s=0.0003, step_s=0.0006)
    assert answer(speed, overhead_s=0.0003, step_s=0.0006)[1] == 1


def test_long_steps_say_nothing_of_it() -> None:
    speed = Speed()
    answer(speed, overhead_s=0.001, step_s=0.014)
    assert speed.command_s == 0.0
    assert answer(speed, overhead_s=0.0002, step_s=0.0006)[1] == 1


def test_the_rest_of_a_cached_prompt_does_not_pass_for_a_slow_prompt() -> None:
    """Sixteen positions take as long as a step takes anyway: after them, chunks are as long as before."""
    speed = Speed()
    for _ in range(50):
        speed.note_step(worker_pb2.StepResult(step_s=0.0043, rows=b"\0\0\0\0"), 1, 0)
        speed.note_step(worker_pb2.StepResult(step_s=0.0131, rows=b"\0\0\0\0"), 1, 512)
    known = speed.prefill_token_s
    assert 17e-6 < known < 26e-6
    for decode_steps in (0, 1, 0):
        speed.note_step(worker_pb2.StepResult(step_s=0.0055, rows=b"\0\0\0\0"), decode_steps, 16)
    assert speed.prefill_token_s < 1.2 * known


@pytest.mark.parametrize("first", [5, 16, 512])
def test_a_first_prompt_of_few_positions_does_not_set_the_length_of_chunks_for_long(first: int) -> None:
    """4.3 ms a step and 19 us a position: a few chunks after the first prompt, however short, that is known."""
    speed, step_s, token_s = Speed(), 0.0043, 19e-6
    speed.note_step(worker_pb2.StepResult(step_s=step_s + first * token_s), 0, first)
    for _ in range(12):
        chunk = chunk_budget(
            8192, step_s=0.05, decode_step_s=speed.decode_step_s, prefill_token_s=speed.prefill_token_s
        )
        speed.note_step(worker_pb2.StepResult(step_s=step_s, rows=b"\0\0\0\0"), 1, 0)
        speed.note_step(worker_pb2.StepResult(step_s=step_s + chunk * token_s, rows=b"\0\0\0\0"), 1, chunk)
    assert speed.prefill_token_s < 1.5 * token_s


def test_short_prompts_alone_are_told_by_in_time() -> None:
    """They are all that there is to go by: a device that got three times as slow is known after some of them."""
    speed = Speed()
    for step_s in [0.004] * 20 + [0.012] * 120:
        speed.note_step(worker_pb2.StepResult(step_s=step_s), 0, 64)
    assert speed.prefill_token_s > 0.9 * 0.012 / 64


def test_another_process_is_measured_anew() -> None:
    speed = Speed()
    answer(speed, overhead_s=0.00125, step_s=0.0006)
    speed.forget_steps()
    assert speed.command_s == 0.0
