"""How far a start has come never goes back, whatever phases there are."""

from gpu_worker.start_up import StartUp


def test_progress_grows_from_phase_to_phase_and_ends_at_one() -> None:
    told: list[float] = []
    start = StartUp(told.append)
    with start.phase("weights") as tell:
        tell(0.5)
        tell(1.0)
    with start.phase("kernels"):
        pass
    with start.phase("memory"):
        pass
    with start.phase("graphs") as tell:
        tell(0.25)
    with start.phase("warm_up"):
        pass
    assert told == sorted(told)
    assert 0 < told[0] < 1
    assert abs(told[-1] - 1) < 1e-9
    assert list(start.seconds) == ["weights", "kernels", "memory", "graphs", "warm_up"]


def test_a_phase_may_be_left_out() -> None:
    told: list[float] = []
    start = StartUp(told.append)
    with start.phase("weights"):
        pass
    assert told[-1] < 1
    assert list(start.seconds) == ["weights"]
