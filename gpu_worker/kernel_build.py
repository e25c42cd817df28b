"""Every kernel of a start, compiled side by side before it is launched: once for a model, a GPU and a cache on disk.

A rehearsal goes through the steps that a start records and runs, over as few layers as have every kind of attention,
and launches nothing. What it misses, or what cannot be compiled, is met again where it is launched.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog
import torch

import gpu_worker
import kernels
from gpu_worker.kv_cache import KvCache
from gpu_worker.model_runner import ModelRunner
from gpu_worker.models.architectures import DecoderConfig
from gpu_worker.models.decoder import Decoder
from gpu_worker.warm_up import warm_up
from kernels.kv_scales import KvScales
from quire.v1 import worker_pb2

if TYPE_CHECKING:
    from kernels.compilation.pool import CompilerPool

log = structlog.get_logger()

_FEWEST_CORES = 4
_MOST_PROCESSES = 12


class KernelBuild:
    """Starts its processes at once, while the weights are read, and ends them when its context is left."""

    def __init__(
        self,
        config: DecoderConfig,
        limits: worker_pb2.WorkerDescription,
        dtype: torch.dtype,
        device: torch.device,
        *,
        is_fp8: bool,
    ) -> None:
        self._config = config
        self._device = device
        self._limits = limits
        self._dtype = dtype
        self._is_fp8 = is_fp8
        self._done = Path()
        self._pool: CompilerPool | None = None
        if device.type == "cuda":
            try:
                self._start()
            except Exception as error:
                _warn(error)

    def _start(self) -> None:
        # Here, since a worker on the CPU has no Triton.
        import triton

        from kernels.compilation.names import fix_names
        from kernels.compilation.pool import CompilerPool

        self._done = Path(triton.knobs.cache.dir) / f"quire-{self._identity(triton.__version__)}"
        fix_names()
        cores = len(os.sched_getaffinity(0))
        if cores >= _FEWEST_CORES and not self._done.exists():
            major, minor = torch.cuda.get_device_capability(self._device)
            self._pool = CompilerPool(min(cores, _MOST_PROCESSES), 10 * major + minor)

    def __enter__(self) -> "KernelBuild":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.__exit__(kind, error, trace)

    @property
    def is_due(self) -> bool:
        """Whether there is anything to compile, and what to do it with."""
        return self._pool is not None

    def run(self, decoder: Decoder, on_progress: Callable[[float], None]) -> None:
        """Compile; `on_progress` gets the share done. Takes memory for a step of few layers, and gives it back.

        Raises OutOfMemoryError alone.
        """
        try:
            self._compile(decoder, on_progress)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            _warn(error)

    def _compile(self, decoder: Decoder, on_progress: Callable[[float], None]) -> None:
        assert self._pool is not None
        with self._pool.rehearsal():
            self._rehearse(decoder.shallow())
        torch.cuda.empty_cache()
        problems = self._pool.finish(on_progress)
        log.info("kernels compiled", number=self._pool.num_kernels, failed=len(problems))
        if problems:
            log.warning("some kernels are compiled where they are launched", first_problem=problems[0][:300])
            return
        self._done.parent.mkdir(parents=True, exist_ok=True)
        self._done.touch()

    def _rehearse(self, decoder: Decoder) -> None:
        limits, device, block_size = self._limits, self._device, self._limits.block_size
        config = decoder.config
        num_blocks = 2 * limits.max_step_tokens // block_size + limits.max_rows
        ones = torch.ones(config.num_kv_heads, device=device)
        scales = [KvScales(ones, ones)] * config.num_layers if self._is_fp8 else None
        cache = KvCache(config, num_blocks, block_size, self._dtype, device, scales)
        own = worker_pb2.WorkerDescription()
        own.CopyFrom(limits)
        own.num_blocks = num_blocks
        runner = ModelRunner(decoder, cache, limits=own, device=device)
        runner.rehearse()
        warm_up(runner, lambda _: None)
        cache.checksums(np.zeros(1, np.int32)).wait()

    def _identity(self, version: str) -> str:
        """Of all that decides which kernels there are, and what becomes of them."""
        limits = self._limits
        found = hashlib.sha256()
        for part in (
            version, torch.__version__, limits.device, self._config, self._dtype, self._is_fp8,
            limits.max_rows, limits.block_size, limits.max_step_tokens, limits.model.max_model_len,
        ):  # fmt: skip
            found.update(f"{part}\n".encode())
        for package in (kernels, gpu_worker):
            for path in sorted(Path(_directory(package)).rglob("*.py")):
                found.update(path.read_bytes())
        return found.hexdigest()[:16]


def _warn(error: Exception) -> None:
    """Time is all that it costs: what is not compiled here is where it is launched."""
    log.warning("kernels are compiled where they are launched", error=f"{type(error).__name__}: {error}")


def _directory(package: Any) -> str:
    return str(package.__path__[0])
