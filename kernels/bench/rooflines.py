# mypy: disable-error-code="no-untyped-call"
"""The rates that bound everything: reading, copying and multiplying, measured on this device.

    python -m kernels.bench.rooflines --device auto

Prints one JSON object: device, read_bytes_per_s, copy_bytes_per_s (bytes read and written), matmul_flops_per_s,
matmul_dtype.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

_REPEATS = 10
_WARM_UPS = 3
# Far over any cache; a CPU's is smaller, and so is its patience.
_GPU_BYTES, _CPU_BYTES = 1 << 32, 1 << 28
_GPU_SIDE, _CPU_SIDE = 8192, 1024


def rooflines(device: str) -> dict[str, str | float]:
    """Measure `cuda` or `cpu`, in about two seconds."""
    on_gpu = device == "cuda"
    source = torch.zeros(_GPU_BYTES if on_gpu else _CPU_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _seconds(partial(target.copy_, source), device)
    read_s = _seconds(_reader(source), device)
    num_bytes = source.numel()
    side, dtype = (_GPU_SIDE, torch.bfloat16) if on_gpu else (_CPU_SIDE, torch.float32)
    # Random, because products of zeros draw less power and so run faster than any model's.
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    matmul_s = _seconds(lambda: torch.mm(left, right, out=product), device)
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "read_bytes_per_s": num_bytes / read_s,
        "copy_bytes_per_s": 2 * num_bytes / copy_s,
        "matmul_flops_per_s": 2.0 * side**3 / matmul_s,
        "matmul_dtype": str(dtype).removeprefix("torch."),
    }


def _reader(source: torch.Tensor) -> Callable[[], object]:
    if source.device.type == "cpu":
        words = source.view(torch.int64)
        return lambda: words.sum()
    from kernels.bench.read_kernel import read_all

    return lambda: read_all(source)


def _seconds(call: Callable[[], object], device: str) -> float:
    """Median of several runs, each timed by the device's own clock where it has one."""
    for _ in range(_WARM_UPS):
        call()
    times = []
    for _ in range(_REPEATS):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e-3)
        else:
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
    return float(statistics.median(times))


def main() -> None:
    """Print the rates of the device asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    asked = parser.parse_args().device
    device = "cuda" if asked == "cuda" or (asked == "auto" and torch.cuda.is_available()) else "cpu"
    print(json.dumps(rooflines(device)))


if __name__ == "__main__":
    main()
