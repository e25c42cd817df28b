"""A worker counts as hung by what its own steps have taken, and one that is only slow is given up once."""

from scheduler_svc.patience import Patience


def answer_every(patience: Patience, seconds: float, *, answers: int, now: float = 0.0) -> float:
    """So many commands, each answered after so long; the time at the end."""
    for _ in range(answers):
        patience.sent(now)
        now += seconds
        patience.answered(now)
    return now


def test_a_worker_of_short_steps_may_be_silent_for_the_least_time() -> None:
    patience = Patience(least_s=10)
    answer_every(patience, 0.01, answers=50)
    assert patience.limit_s == 10


def test_a_worker_of_long_steps_may_be_silent_for_longer() -> None:
    patience = Patience(least_s=10)
    answer_every(patience, 2.0, answers=3)
    assert patience.limit_s == 40


def test_before_its_first_answer_a_worker_has_a_minute() -> None:
    assert Patience(least_s=10).limit_s == 60
    assert Patience(least_s=90).limit_s == 90


def test_silence_is_what_a_worker_owes_and_nothing_while_it_has_no_commands() -> None:
    patience = Patience(least_s=10)
    assert patience.silent_s(100.0) == 0
    patience.sent(100.0)
    patience.sent(103.0)
    assert patience.silent_s(105.0) == 5
    patience.answered(106.0)
    assert patience.silent_s(107.0) == 1
    patience.answered(107.0)
    assert patience.silent_s(200.0) == 0


def test_time_without_commands_is_no_silence_that_is_remembered() -> None:
    patience = Patience(least_s=1)
    now = answer_every(patience, 0.01, answers=1)
    answer_every(patience, 0.01, answers=1, now=now + 1000)
    assert patience.limit_s == 1


def test_a_worker_that_was_given_up_is_given_twenty_times_as_long() -> None:
    patience = Patience(least_s=10)
    now = answer_every(patience, 0.01, answers=1)
    patience.sent(now)
    patience.give_up(now + 11)
    patience.begin()
    assert patience.silent_s(now + 500) == 0
    assert patience.limit_s == 220


def test_what_was_learned_is_forgotten_over_many_answers() -> None:
    patience = Patience(least_s=10)
    now = answer_every(patience, 11, answers=1)
    assert patience.limit_s == 220
    answer_every(patience, 0.01, answers=1000, now=now)
    assert patience.limit_s == 10
