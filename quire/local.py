"""The services behind one Python process: its own worker, scheduler and, if asked for, tokenizer, on Unix sockets."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc

from quire.launcher import Launcher, LaunchError, ServiceCommand, services_directory
from quire.rpc.channel import open_channel
from quire.v1 import scheduler_pb2_grpc, tokenizer_pb2_grpc, types_pb2, worker_pb2, worker_pb2_grpc

_POLL_S = 0.05
_STATUS_TIMEOUT_S = 1.0
_LOG_TAIL_CHARS = 2000
# Whoever owns the services decides how much waits: nobody else could be told to come back later.
_OWN_QUEUE = {"max_queue_requests": 2**31 - 1, "max_queue_tokens": 2**60, "max_wait_s": 0}

OFFLINE_SCHEDULER: Mapping[str, object] = {
    "itl_target_s": 0,
    "max_step_tokens": 16384,
    "decode_burst_s": 0.02,
}
"""Scheduler settings where only the last token's time counts: long steps, up to the worker's own limit."""

T = TypeVar("T")


def demo_model() -> Path:
    """The checkpoint that comes with Quire."""
    return services_directory() / "models" / "demo"


async def worker_progress(stub: "worker_pb2_grpc.WorkerAsyncStub") -> str:
    """How far a worker is with its start, for people."""
    try:
        status = await stub.GetStatus(types_pb2.GetStatusRequest(), timeout=_STATUS_TIMEOUT_S)
    except grpc.aio.AioRpcError:
        return "starting services"
    if status.state == types_pb2.SERVICE_STATE_STARTING:
        return f"loading the model: {status.load_progress:.0%}"
    try:
        return worker_report(await stub.Describe(worker_pb2.DescribeRequest(), timeout=_STATUS_TIMEOUT_S))
    except grpc.aio.AioRpcError:
        return "model loaded"


def worker_report(worker: worker_pb2.WorkerDescription) -> str:
    """What a worker's memory goes to."""
    tokens = worker.num_blocks * worker.block_size
    graphs = f", {worker.num_graphs} graphs" if worker.num_graphs else ""
    return (
        f"model loaded on {worker.device}: weights {_bytes(worker.weights_bytes)}, KV cache "
        f"{_bytes(worker.kv_cache_bytes)} for {tokens:,} tokens, {worker.max_rows} rows{graphs}"
    )


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def flags(values: Mapping[str, object]) -> list[str]:
    """Settings by name as a service's flags; None leaves a setting to its default."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items() if value is not None]


class LocalServices:
    """Child processes that live as long as `async with` does.

    `worker` and `scheduler` are settings by name (docs/settings.md). A service that dies is started again, as under
    `quire serve`; `num_restarts` says how often. Entering raises LaunchError, with the service's own last words, when
    one cannot start.
    """

    def __init__(
        self,
        model: str,
        *,
        worker: Mapping[str, object],
        scheduler: Mapping[str, object],
        with_tokenizer: bool,
        say: Callable[[str], None],
    ) -> None:
        # Not a TemporaryDirectory: at the end of the process that would be gone before the services.
        folder = self._folder = Path(tempfile.mkdtemp(prefix="quire-"))
        self.worker_address = f"unix:{folder}/worker"
        self.scheduler_address = f"unix:{folder}/scheduler"
        self.tokenizer_address = f"unix:{folder}/tokenizer"
        self.num_restarts = 0
        self._say = say
        self._with_tokenizer = with_tokenizer
        shared = {"log_level": "warning", "log_format": "console", "grace_s": 0.5}
        services: dict[str, dict[str, object]] = {
            "tokenizer_svc": {
                "listen": self.tokenizer_address,
                "schedulers": self.scheduler_address,
                "model": model,
            },
            "scheduler_svc": {
                "listen": self.scheduler_address,
                "workers": self.worker_address,
                **_OWN_QUEUE,
                **scheduler,
            },
            "gpu_worker": {"listen": self.worker_address, "model": model, **worker},
        }
        if not with_tokenizer:
            del services["tokenizer_svc"]
        commands = [
            ServiceCommand(name, flags({**shared, **settings})) for name, settings in services.items()
        ]
        self._launcher = Launcher(commands, self._restarted, logs=folder)
        self._running: asyncio.Task[None] | None = None

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each service."""
        return self._launcher.pids

    async def __aenter__(self) -> Self:
        ready = asyncio.Event()
        self._running = asyncio.create_task(self._launcher.run(self._until_ready, ready.set), name="services")
        try:
            await self.guard(ready.wait())
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def guard(self, work: Awaitable[T]) -> T:
        """Await `work`. Raises LaunchError instead when the services cannot be kept running meanwhile."""
        assert self._running is not None
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self._running}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            error = None if self._running.cancelled() else self._running.exception()
            if error is None:
                raise LaunchError("the services were stopped")
            if isinstance(error, LaunchError):
                raise LaunchError(f"{error}{self._last_words(error)}")
            raise error
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError, LaunchError):
                await self._running
        shutil.rmtree(self._folder, ignore_errors=True)

    def _restarted(self, line: str) -> None:
        self.num_restarts += 1
        self._say(line)

    def _last_words(self, error: LaunchError) -> str:
        """What the service that the error names wrote last."""
        log = self._folder / f"{str(error).partition(' ')[0]}.log"
        words = log.read_text(errors="replace")[-_LOG_TAIL_CHARS:].strip() if log.exists() else ""
        return f":\n{words}" if words else ""

    async def _until_ready(self) -> None:
        """Return when the topmost service would take a request."""
        async with open_channel(self.worker_address) as worker_channel, self._top_channel() as channel:
            worker: worker_pb2_grpc.WorkerAsyncStub = worker_pb2_grpc.WorkerStub(worker_channel)
            said, is_ready = "", False
            while not is_ready:
                is_ready = await self._is_ready(channel)
                progress = await worker_progress(worker)
                if progress != said:
                    self._say(progress)
                said = progress
                await asyncio.sleep(0 if is_ready else _POLL_S)

    def _top_channel(self) -> grpc.aio.Channel:
        return open_channel(self.tokenizer_address if self._with_tokenizer else self.scheduler_address)

    async def _is_ready(self, channel: grpc.aio.Channel) -> bool:
        asked = types_pb2.GetStatusRequest()
        try:
            if self._with_tokenizer:
                tokenizer: tokenizer_pb2_grpc.TokenizerAsyncStub = tokenizer_pb2_grpc.TokenizerStub(channel)
                state = (await tokenizer.GetStatus(asked, timeout=_STATUS_TIMEOUT_S)).state
            else:
                scheduler: scheduler_pb2_grpc.SchedulerAsyncStub = scheduler_pb2_grpc.SchedulerStub(channel)
                state = (await scheduler.GetStatus(asked, timeout=_STATUS_TIMEOUT_S)).state
        except grpc.aio.AioRpcError:
            return False
        return state == types_pb2.SERVICE_STATE_READY
