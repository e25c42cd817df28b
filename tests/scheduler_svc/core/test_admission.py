"""Who is let in with a deadline: what would not be done in time is refused before it costs anybody's."""

from contextlib import nullcontext

import pytest

from quire.errors import Overloaded
from quire.v1 import scheduler_pb2, types_pb2, worker_pb2
from scheduler_svc.core.admission import Backlog, admit
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.speed import Speed
from tests.scheduler_svc.core.timed_fleet import STEP_S, TOKEN_S, TimedFleet


def backlog(**changes: object) -> Backlog:
    """Half a second to the first token and 10 ms to each further one; nothing waits, and rows are free."""
    fields: dict[str, object] = {
        "waiting_sequences": 0,
        "waiting_tokens": 0,
        "own_waiting_tokens": 0,
        "waiting_short_tokens": 0,
        "uncached": [100],
        "placed_s": 0.5,
        "share": 1.0,
        "rows_free": 4,
        "tokens_per_s": 1000.0,
        "releases_per_s": 10.0,
        "token_s": 0.01,
    }
    return Backlog(**(fields | changes))  # type: ignore[arg-type]


def is_let_in(found: Backlog, *, timeout_s: float, output_tokens: float = 101, known: bool = True) -> bool:
    try:
        admit(found, Limits(), output_tokens=output_tokens, is_length_known=known, timeout_s=timeout_s)
    except Overloaded as refusal:
        return not refusal.retry_after_s
    return True


@pytest.mark.parametrize(
    ("known", "busy", "least_s"),
    [
        # First token after 0.5 s, whole after 1.5 s.
        (True, False, 1.5),
        (False, False, 0.5),
        # No row is free: one comes after 0.1 s, and time is left for what may come between.
        (True, True, 1.5 * 1.25),
        (False, True, 1.5 * 2.0),
    ],
)
def test_what_begins_at_once_needs_its_time_and_what_waits_some_to_spare(
    known: bool, busy: bool, least_s: float
) -> None:
    found = backlog(rows_free=0) if busy else backlog()
    assert is_let_in(found, timeout_s=least_s + 0.01, known=known)
    assert not is_let_in(found, timeout_s=least_s - 0.01, known=known)


@pytest.mark.parametrize(("max_wait_s", "refused"), [(0.0, False), (1.4, True), (1.6, False)])
def test_who_would_wait_too_long_for_the_first_token_is_refused_though_no_deadline_was_named(
    max_wait_s: float, refused: bool
) -> None:
    limits, waits = Limits(max_wait_s=max_wait_s), {"waiting_tokens": 1000, "own_waiting_tokens": 1000}
    found = backlog(waiting_sequences=1, waiting_short_tokens=1000, **waits)
    assert found.ttft_s() == 1.5
    with pytest.raises(Overloaded) if refused else nullcontext():
        admit(found, limits, output_tokens=10, is_length_known=True, timeout_s=None)
    # Whoever is first is taken, however slow it will be.
    admit(backlog(placed_s=9.0), limits, output_tokens=10, is_length_known=True, timeout_s=None)


def test_a_length_that_is_known_counts_whatever_others_were() -> None:
    fleet = TimedFleet(64, max_rows=4)
    fleet.add(0, 16, max_tokens=4)
    while fleet.step():
        pass
    # A step is 5 ms: 200 tokens take a second, though the only answer so far had four.
    with pytest.raises(Overloaded, match=r"it could take 1 s .* longer than the timeout of 0\.9 s"):
        fleet.add(1, 16, max_tokens=200, timeout_s=0.9)
    fleet.add(2, 16, max_tokens=200, timeout_s=1.1)


def test_steps_with_prompts_count_in_the_time_from_token_to_token() -> None:
    speed = Speed()
    for prefill_tokens in (0, 1000) * 500:
        result = worker_pb2.StepResult(step_s=STEP_S + prefill_tokens * TOKEN_S, rows=b"\0\0\0\0")
        speed.note_step(result, decode_steps=1, prefill_tokens=prefill_tokens)
    assert speed.decode_step_s == pytest.approx(STEP_S)
    assert speed.token_s == pytest.approx(STEP_S + 500 * TOKEN_S, rel=0.05)


def test_answers_that_are_broken_off_do_not_leave_the_mean_to_the_short_ones() -> None:
    """Half of the answers end after 4 tokens, half are cut at their deadline after some fifty."""
    fleet = TimedFleet(256, max_rows=4)
    for handle in range(200):
        stops = types_pb2.SamplingParams(max_tokens=4 if handle % 2 else 1000, stop_token_ids=b"\xe7\3\0\0")
        fleet.scheduler.add(
            1,
            handle,
            scheduler_pb2.TokenRequest(
                prompt_token_ids=b"\1\0\0\0" * 16, sampling=stops, timeout_s=None if handle % 2 else 0.3
            ),
            0,
            fleet.now,
        )
        while fleet.step():
            pass
    assert fleet.scheduler._requests.mean_output > 15
