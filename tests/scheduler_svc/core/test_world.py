"""What the world of the histories owes the core: whatever came before, it can come to rest."""

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
