"""What host and device did in a window of time, on request: a trace of a running worker's kernels, copies and calls."""

import asyncio
import gzip
import os
import time
from pathlib import Path
from typing import Any

import structlog
import torch
from torch.profiler import ProfilerActivity, profile

from gpu_worker.step_loop import StepLoop

log = structlog.get_logger()


class StepProfiler:
    """Records one window at a time. Its beginning and its end pause the steps; in between they hardly pay."""

    def __init__(self, step_loop: StepLoop, directory: Path, window_s: float) -> None:
        self._step_loop = step_loop
        self._directory = directory
        self._window_s = window_s
        self._recording: asyncio.Task[None] | None = None

    def request(self) -> None:
        """Record a window that begins now, unless one is being recorded.

        Its file, in Chrome's trace format and gzipped, appears in the directory when it is whole; the log names it.
        """
        if self._recording is None or self._recording.done():
            self._recording = asyncio.create_task(self._record(), name="profile")

    async def _record(self) -> None:
        try:
            # Both in the thread that launches: the profiler sees the calls of the thread that starts it.
            profiler = await self._step_loop.call(_started)
            await asyncio.sleep(self._window_s)
            await self._step_loop.call(profiler.stop)
            path = await asyncio.to_thread(_write, profiler, self._directory)
        except (RuntimeError, OSError) as error:
            log.error("the device's work could not be traced", error=str(error))
            return
        log.warning("trace of the device's work written", path=str(path))


def _started() -> Any:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    # Accumulating is what keeps torch from warning that it does not.
    profiler = profile(activities=activities, acc_events=True)
    profiler.start()
    return profiler


def _write(profiler: Any, directory: Path) -> Path:
    stem = f"quire-steps-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    path, plain, packed = (directory / f"{stem}.json{end}" for end in (".gz", "", ".part"))
    try:
        profiler.export_chrome_trace(str(plain))
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        packed.rename(path)
    finally:
        for unfinished in (plain, packed):
            unfinished.unlink(missing_ok=True)
    return path
