# mypy: disable-error-code="no-untyped-call"
"""Times of GPU work as a CUDA graph replays it: no launch costs of the host, but the gaps between kernels."""

import statistics
from collections.abc import Callable, Sequence

import torch

_REPLAYS = 20


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
