"""The benchmark of a full queue has what it says: replicas at work, and as many waiting as asked for."""

from benchmarks.scheduler_cpu_queue import measure_queue


def test_a_full_queue_keeps_its_replicas_at_work() -> None:
    cost = measure_queue(waiting=6, replicas=2, rounds=12)
    assert (cost.replicas, cost.waiting, cost.steps) == (2, 6, 24)
    assert cost.rows_mean > 1
    assert cost.placed_per_step > 0
    assert 0 < cost.step_us_p50 <= cost.step_us_p99
    assert cost.admission_us_mean > 0
