"""Memory is called flat only where it is."""

from benchmarks.gpu_proof.memory import MemorySample, growth

GIB = 2**30


def samples(gpu: list[int], resident: list[int]) -> list[MemorySample]:
    return [
        MemorySample(float(at), reserved, reserved, 0, worker, worker)
        for at, (reserved, worker) in enumerate(zip(gpu, resident, strict=True))
    ]


def test_what_grows_only_while_it_warms_up_is_flat() -> None:
    kept = growth(samples([1] + [5 * GIB] * 19, [1, *[GIB, GIB + (20 << 20)] * 9, GIB]))
    assert all(half["is_flat"] for half in kept.values())


def test_a_leak_on_the_gpu_is_seen() -> None:
    kept = growth(samples([GIB + (step << 20) for step in range(20)], [GIB] * 20))
    assert not kept["gpu_allocated"]["is_flat"]
    assert kept["worker_resident"]["is_flat"]


def test_a_process_that_grows_all_the_time_is_not_flat() -> None:
    kept = growth(samples([GIB] * 20, [GIB + (step << 24) for step in range(20)]))
    assert not kept["worker_resident"]["is_flat"]
