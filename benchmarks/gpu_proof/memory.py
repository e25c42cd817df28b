"""Whether memory stays flat: what the worker's allocator, its processes and the driver hold, sampled over time."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gpu_proof.services import Services

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MIB = 1 << 20
_GPU_SLACK, _RESIDENT_SLACK = 8 * _MIB, 32 * _MIB
"""What batches in flight, and a process's own allocator, take more at one time than at another."""


@dataclass(frozen=True)
class MemorySample:
    """Bytes at one time."""

    at_s: float
    gpu_allocated: int
    gpu_reserved: int
    gpu_driver: int
    """In use on the whole card, by whatever process; 0 where there is none."""
    worker_resident: int
    scheduler_resident: int


class MemoryLog:
    """Samples from `start_s` on."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._started = time.monotonic()
        self.samples: list[MemorySample] = []

    async def run(self, every_s: float) -> None:
        """Sample until cancelled."""
        while True:
            await self.sample()
            await asyncio.sleep(every_s)

    async def sample(self) -> None:
        """Take one sample."""
        metrics = await self._services.worker_metrics()
        pids = self._services.local.pids
        self.samples.append(
            MemorySample(
                at_s=round(time.monotonic() - self._started, 1),
                gpu_allocated=int(metrics["quire_worker_device_memory_allocated_bytes"]),
                gpu_reserved=int(metrics["quire_worker_device_memory_reserved_bytes"]),
                gpu_driver=_driver_bytes(),
                worker_resident=_resident(pids["gpu_worker"]),
                scheduler_resident=_resident(pids["scheduler_svc"]),
            )
        )


def growth(samples: Sequence[MemorySample]) -> dict[str, dict[str, Any]]:
    """Of each kind: median of the first and of the second half, without the first tenth, and whether they are equal.

    8 MiB of the GPU's memory and 32 MiB of a process's are called equal: over ten thousands of requests, less than a
    few KiB of each.
    """
    settled = [sample for sample in samples if sample.at_s >= samples[-1].at_s * 0.1]
    half = len(settled) // 2
    found = {}
    for name in list(asdict(samples[0]))[1:]:
        early, late = (
            int(median(getattr(sample, name) for sample in part)) for part in (settled[:half], settled[half:])
        )
        slack = _GPU_SLACK if name.startswith("gpu") else _RESIDENT_SLACK
        found[name] = {"first_half": early, "second_half": late, "is_flat": late <= early + slack}
    return found


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def _driver_bytes() -> int:
    # Not nvidia-smi: gRPC does not survive that this process forks.
    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free
