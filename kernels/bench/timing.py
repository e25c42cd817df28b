# mypy: disable-error-code="no-untyped-call"
"""Times of work on a device: on a GPU as a CUDA graph replays it, so without launch costs of the host."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

_REPLAYS = 20
_CPU_RUNS = 5


def call_us(calls: Sequence[Callable[[], object]], device: str, repeat: int = 1) -> float:
    """Median microseconds of one call, on `cuda` as `graph_us` takes them, on `cpu` by the clock."""
    if device == "cuda":
        return graph_us(calls, repeat)
    calls[0]()
    times = []
    for number in range(_CPU_RUNS):
        started = time.perf_counter()
        calls[number % len(calls)]()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e6


def graph_us(calls: Sequence[Callable[[], object]], repeat: int = 1) -> float:
    """Median microseconds of one call, over replays of a graph that holds all `calls`, `repeat` times.

    Give calls that read different memory to keep what they read out of the second-level cache.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeat):
            for call in calls:
                call()
    for _ in range(3):
        graph.replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2 * _REPLAYS)]
    for start, end in zip(marks[::2], marks[1::2], strict=True):
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    times = [start.elapsed_time(end) for start, end in zip(marks[::2], marks[1::2], strict=True)]
    return float(statistics.median(times)) * 1e3 / (repeat * len(calls))


def copy_bandwidth() -> float:
    """Bytes per second that a copy of 1 GiB within device memory reads and writes."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (graph_us([lambda: target.copy_(source)]) * 1e-6)
