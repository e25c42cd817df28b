"""What the world of the histories owes the core: whatever came before, it can come to rest."""

import pytest

from tests.scheduler_svc.core.world import World


def test_who_has_too_little_time_left_to_be_let_in_again_ends_with_its_deadline() -> None:
    world = World()
    world.ask(1, [1, 2, 6], max_tokens=20, timeout_s=5.0)
    for _ in range(3):
        world.now += 0.05
        world.feed("w0")
        world.answer("w0")
    world.receive()
    world.disconnect("w0", restart=False)
    world.now = 5.0 - 1e-9
    world.scheduler.expire(world.now)
    world.receive()
    assert not world.asked[1].home, "its scheduler has given it back"
    world.settle()
    assert 0 < len(world.asked[1].tokens[0]) < 20


def test_a_scheduler_that_is_given_a_worker_which_it_has_not_left_yet_keeps_it() -> None:
    world = World(num_schedulers=2)
    world.ask(1, [1, 2, 6], max_tokens=20)
    world.feed("w0")
    world.hand_over("w0", "s1")
    world.feed("w0")
    assert world.lessees["w0"] == "s1"
    assert world.shells["s0"].leaving
    world.hand_over("w0", "s0")
    world.ask(2, [2, 2, 6], max_tokens=20)
    world.settle()
    assert world.asked[2].num_homes == 1


def test_what_takes_long_is_not_taken_for_what_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.scheduler_svc.core.world._PATIENCE", 10)
    world = World(max_rows=1, max_decode_steps=1, pipeline_depth=1)
    for key in range(1, 11):
        world.ask(key, [key % 7, 6], max_tokens=25)
    world.settle()
    assert sum(len(tokens) for asked in world.asked.values() for tokens in asked.tokens.values()) > 100
