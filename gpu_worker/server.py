"""The Worker service: the lease, the step protocol's stream, and what the worker says of itself."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import structlog

from gpu_worker import metrics
from gpu_worker.block_tags import BlockTags
from gpu_worker.loading import LoadedWorker, load
from gpu_worker.settings import WorkerSettings
from gpu_worker.step_loop import CommandStream, StepCounts, StepLoop, Superseded
from gpu_worker.step_profiler import StepProfiler
from quire.errors import InvalidRequest, NotReady, QuireError
from quire.packing import pack_uint64, unpack_int32
from quire.redis_client import open_redis
from quire.registry import Registration, reachable_address
from quire.rpc.server import RpcServer
from quire.service import Shutdown, end_tasks
from quire.v1 import types_pb2, worker_pb2, worker_pb2_grpc

log = structlog.get_logger()

LEASE_KEY = "quire-lease-epoch"
SERVICE_NAME = worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name
_MAX_LEASE_EPOCH = 2**64 - 1


class WorkerServicer(worker_pb2_grpc.WorkerServicer):
    """The service and the process around it: listens at once, loads in a thread, then runs what it is told."""

    def __init__(
        self, settings: WorkerSettings, shutdown: Shutdown, *, on_loaded: Callable[[], None] | None = None
    ) -> None:
        self._settings = settings
        self._shutdown = shutdown
        self._on_loaded = on_loaded
        self.rpc = RpcServer(settings.listen)
        worker_pb2_grpc.add_WorkerServicer_to_server(self, self.rpc.server)
        self._epoch = int.from_bytes(os.urandom(8), "little") | 1
        self._progress = 0.0
        self._loading: asyncio.Task[None] | None = None
        self._loaded: LoadedWorker | None = None
        self._step_loop: StepLoop | None = None
        self._tags: BlockTags | None = None
        self._profiler: StepProfiler | None = None
        self._redis = open_redis(settings.redis_url) if settings.redis_url else None
        self._registration: asyncio.Task[None] | None = None
        self._lease_epoch = 0
        self._draining = False

    # -- the process

    async def start(self) -> None:
        """Listen, and begin to load."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, self._trace_steps)
        await self.rpc.start([SERVICE_NAME])
        self._loading = asyncio.create_task(self._load(), name="load")

    async def drain(self) -> None:
        """Say so, and wait until the scheduler has moved the sequences that run here."""
        self._draining = True
        await self.rpc.set_serving(False)
        if self._step_loop is not None:
            await self._step_loop.idle.wait()

    async def stop(self) -> None:
        """Close the stream and the thread."""
        if self._loading is not None:
            self._loading.cancel()
        if self._registration is not None:
            await end_tasks([self._registration])
        if self._redis is not None:
            await self._register().withdraw()
            await self._redis.aclose()
        await self.rpc.stop(0)
        if self._step_loop is not None:
            await asyncio.to_thread(self._step_loop.close)

    async def _load(self) -> None:
        started = time.monotonic()
        try:
            loaded = await asyncio.to_thread(load, self._settings, self._epoch, self._on_progress)
            self._become_ready(loaded, time.monotonic() - started)
            if self._on_loaded is not None:
                self._on_loaded()
        except QuireError as error:
            self._shutdown.fail(error.message)
            return
        except Exception as error:  # whatever it is: a worker that never gets ready must not stay
            log.error("loading failed", exc_info=error)
            self._shutdown.fail(f"cannot load {self._settings.model}: {type(error).__name__}: {error}")
            return
        await self.rpc.set_serving(True)
        if self._redis is not None:
            self._registration = asyncio.create_task(self._register().run(), name="registration")

    def _become_ready(self, loaded: LoadedWorker, load_s: float) -> None:
        self._loaded = loaded
        self._progress = 1.0
        self._step_loop = StepLoop(loaded.runner)
        self._tags = BlockTags(loaded.description.num_blocks, loaded.description.block_size)
        self._profiler = StepProfiler(
            self._step_loop, Path(self._settings.profile_dir), self._settings.profile_s
        )
        metrics.load_seconds.set(load_s)
        metrics.kv_cache_bytes.set(loaded.description.kv_cache_bytes)
        metrics.weights_bytes.set(loaded.description.weights_bytes)
        log.info(
            "ready",
            model=loaded.description.model.name,
            weights_mib=loaded.description.weights_bytes >> 20,
            kv_cache_tokens=loaded.description.num_blocks * loaded.description.block_size,
            kv_cache_mib=loaded.description.kv_cache_bytes >> 20,
            graphs=loaded.runner.num_graphs,
            seconds=round(load_s, 2),
            **{f"{phase}_s": round(seconds, 2) for phase, seconds in loaded.seconds.items()},
        )

    def _trace_steps(self) -> None:
        if self._profiler is None:
            log.warning("there are no steps to trace: the weights are loading")
        else:
            self._profiler.request()

    def _register(self) -> Registration:
        """This worker's entry in the registry, where schedulers find it."""
        assert self._redis is not None
        address = self._settings.advertise or reachable_address(self.rpc.address)

        def describe() -> dict[str, str | int]:
            return {
                "address": address,
                "epoch": self._epoch,
                "state": "draining" if self._draining else "ready",
                # A Redis that came back empty has lost the lease; this says that there is one all the same.
                "driven": self._step_loop is not None and self._step_loop.stream is not None,
                "lease_epoch": self._lease_epoch,
            }

        return Registration(self._redis, "worker", self._settings.worker_id, describe)

    def _on_progress(self, share: float) -> None:
        self._progress = min(share, 0.99)

    # -- the calls

    async def Describe(  # noqa: N802
        self, request: worker_pb2.DescribeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.WorkerDescription:
        """What this worker is; NotReady while it loads."""
        return self._ready().description

    async def DescribeBlocks(  # noqa: N802
        self, request: worker_pb2.DescribeBlocksRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.DescribeBlocksResponse:
        """What blocks hold, as of the commands received so far."""
        loaded = self._ready()
        assert self._tags is not None
        assert self._step_loop is not None
        num_blocks = loaded.description.num_blocks
        try:
            block_ids = unpack_int32(request.block_ids)
        except ValueError:
            raise InvalidRequest("block_ids are not packed int32", param="block_ids") from None
        if len(block_ids) == 0:
            block_ids = np.arange(num_blocks, dtype=np.int32)
        if int(block_ids.min()) < 0 or int(block_ids.max()) >= num_blocks:
            raise InvalidRequest(f"block ids are 0 to {num_blocks - 1}", param="block_ids")
        checksums = b""
        if request.with_checksums:
            pending = await self._step_loop.call(lambda: loaded.cache.checksums(block_ids))
            # Not in the thread that launches: the device would run dry meanwhile.
            checksums = (await asyncio.to_thread(pending.wait)).tobytes()
        return worker_pb2.DescribeBlocksResponse(
            worker_epoch=self._epoch,
            lease_epochs=pack_uint64(self._tags.lease_epochs[block_ids]),
            step_ids=pack_uint64(self._tags.step_ids[block_ids]),
            checksums=checksums,
        )

    async def GetStatus(  # noqa: N802
        self, request: types_pb2.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.WorkerStatus:
        """What it is doing."""
        stream = self._step_loop.stream if self._step_loop is not None else None
        counts = self._step_loop.counts if self._step_loop is not None else StepCounts()
        state = types_pb2.SERVICE_STATE_READY if self._loaded else types_pb2.SERVICE_STATE_STARTING
        return worker_pb2.WorkerStatus(
            state=types_pb2.SERVICE_STATE_DRAINING if self._draining else state,
            worker_id=self._settings.worker_id,
            worker_epoch=self._epoch,
            load_progress=self._progress,
            rows_used=counts.rows_used,
            blocks_used=self._step_loop.num_blocks_used if self._step_loop is not None else 0,
            last_step_id=counts.last_step_id,
            commands_in_flight=stream.in_flight if stream is not None else 0,
            steps_executed=counts.steps_executed,
            tokens_computed=counts.tokens_computed,
            lease_epoch=self._lease_epoch if stream is not None else 0,
        )

    async def Drain(  # noqa: N802
        self, request: types_pb2.DrainRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> types_pb2.DrainResponse:
        """Begin to leave."""
        self._shutdown.drain(request.timeout_s)
        return types_pb2.DrainResponse()

    async def Run(  # noqa: N802
        self,
        request_iterator: AsyncIterator[worker_pb2.StepCommand],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[worker_pb2.StepResult]:
        """The step protocol, for whoever has the newest lease."""
        self._ready()
        step_loop = self._step_loop
        assert step_loop is not None
        lease_epoch = _lease_epoch(context)
        if lease_epoch < self._lease_epoch:
            raise Superseded(f"this worker is leased under epoch {self._lease_epoch}")
        self._lease_epoch = lease_epoch
        stream = step_loop.begin()
        reader = asyncio.create_task(self._read(request_iterator, stream, lease_epoch), name="commands")
        try:
            await stream.cleared.wait()
            # Tells the scheduler that the lease is its own, and that the device does what it is told.
            await context.send_initial_metadata(())
            async for result in step_loop.results(stream):
                result.draining = self._draining
                yield result
        finally:
            reader.cancel()
            step_loop.end(stream)

    async def _read(
        self, commands: AsyncIterator[worker_pb2.StepCommand], stream: CommandStream, lease_epoch: int
    ) -> None:
        assert self._step_loop is not None
        expected = 1
        async for command in commands:
            if command.lease_epoch != lease_epoch:
                stream.results.put_nowait(Superseded(f"this stream is leased under epoch {lease_epoch}"))
                return
            if command.step_id != expected:
                problem = InvalidRequest(f"step {command.step_id} came where {expected} was due")
                stream.results.put_nowait(problem)
                return
            expected += 1
            if self._tags is not None:
                self._tags.note(command)
            await self._step_loop.submit(stream, command)
        self._step_loop.complete(stream)

    def _ready(self) -> LoadedWorker:
        if self._loaded is None:
            raise NotReady(f"the weights are loading ({self._progress:.0%})", retry_after_s=1.0)
        return self._loaded


def _lease_epoch(context: grpc.aio.ServicerContext[Any, Any]) -> int:
    text = next((str(value) for key, value in context.invocation_metadata() or () if key == LEASE_KEY), "0")
    if not (text.isascii() and text.isdigit() and int(text) <= _MAX_LEASE_EPOCH):
        raise InvalidRequest(f"the metadata {LEASE_KEY} must be a decimal uint64, not {text[:40]!r}")
    return int(text)
