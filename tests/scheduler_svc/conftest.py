"""A scheduler service and its workers on Unix sockets."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.instant_rows import expected_tokens
from benchmarks.instant_worker import InstantWorker, InstantWorkerSettings
from quire.packing import pack_int32, unpack_int32
from quire.rpc.channel import open_channel
from quire.service import Shutdown
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, types_pb2, worker_pb2
from scheduler_svc.server import SchedulerServicer
from scheduler_svc.settings import SchedulerSettings

VOCAB = 1000
# Of waiting for a condition, which a process may have to be started for on a busy machine.
LIMIT_S = 120.0


@dataclass
class Service:
    """A running scheduler and a channel to it."""

    servicer: SchedulerServicer
    stub: "scheduler_pb2_grpc.SchedulerAsyncStub"
    address: str
    shutdown: Shutdown

    async def status(self) -> scheduler_pb2.SchedulerStatus:
        """What it says of itself."""
        return await self.stub.GetStatus(types_pb2.GetStatusRequest())

    async def until_state(self, state: types_pb2.ServiceState.ValueType) -> None:
        """Return once it is in `state`."""
        async with asyncio.timeout(LIMIT_S):
            while (await self.status()).state != state:
                await asyncio.sleep(0.005)

    async def until_retired(self, step_id: int) -> scheduler_pb2.ReplicaStatus:
        """Return its only replica's status once this command has retired and two more are in flight."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                (replica,) = (await self.status()).replicas
                if (replica.last_step_retired, replica.last_step_sent) == (step_id, step_id + 2):
                    return replica
                await asyncio.sleep(0.005)

    async def until_running(self, count: int) -> None:
        """Return once so many sequences hold a row and keep it."""
        async with asyncio.timeout(LIMIT_S):
            while (await self.status()).sequences_running != count:
                await asyncio.sleep(0.005)

    async def until_free(self) -> scheduler_pb2.ReplicaStatus:
        """Return its only replica's status once no row and no block is in use."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                (replica,) = (await self.status()).replicas
                if replica.rows_used == 0 and replica.blocks_used == 0:
                    return replica
                await asyncio.sleep(0.005)


class Sockets:
    """Addresses in a folder of the test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, name: str) -> str:
        return f"unix:{self._folder}/{name}"


@pytest.fixture
def sockets(tmp_path: Path) -> Sockets:
    return Sockets(tmp_path)


@asynccontextmanager
async def running_worker(address: str, **settings: object) -> AsyncIterator[InstantWorker]:
    """An instant worker in this process."""
    defaults: dict[str, object] = {
        "vocab_size": VOCAB,
        "max_rows": 16,
        "num_blocks": 256,
        "max_model_len": 512,
    }
    worker = InstantWorker(InstantWorkerSettings(listen=address, **(defaults | settings)))  # type: ignore[arg-type]
    await worker.start()
    try:
        yield worker
        assert worker.violations == []
    finally:
        await worker.stop()


class StepPermits:
    """Lets a worker answer so many commands, and no more until told."""

    def __init__(self, count: int) -> None:
        self._permits = asyncio.Semaphore(count)
        self._open = False

    async def take(self) -> None:
        """Wait for a permit."""
        if not self._open:
            await self._permits.acquire()

    def release_all(self) -> None:
        """Hold nothing back any more."""
        self._open = True
        for _ in range(2):  # one for each command that may be waiting
            self._permits.release()


def allow_steps(worker: InstantWorker, count: int) -> StepPermits:
    """The worker answers `count` more commands; those after wait in the pipeline."""
    permits, execute = StepPermits(count), worker._execute

    async def execute_permitted(command: worker_pb2.StepCommand) -> worker_pb2.StepResult:
        await permits.take()
        return await execute(command)

    worker._execute = execute_permitted  # type: ignore[method-assign]
    return permits


@contextmanager
def worker_process(address: str, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """An instant worker in a process of its own, to be killed or stopped."""
    defaults: dict[str, object] = {
        "vocab_size": VOCAB,
        "max_rows": 16,
        "num_blocks": 256,
        "max_model_len": 512,
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (defaults | settings).items()]
    command = [sys.executable, "-m", "benchmarks.instant_worker", "--listen", address, *flags]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("QUIRE_")}
    process = subprocess.Popen([*command, "--log-level", "error"], env=environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@asynccontextmanager
async def running_scheduler(address: str, *workers: str, **settings: object) -> AsyncIterator[Service]:
    """A scheduler in this process."""
    shutdown = Shutdown()
    servicer = SchedulerServicer(
        SchedulerSettings(listen=address, workers=workers, **settings),  # type: ignore[arg-type]
        shutdown,
    )
    await servicer.start()
    channel = open_channel(address)
    try:
        yield Service(servicer, scheduler_pb2_grpc.SchedulerStub(channel), address, shutdown)
        assert shutdown.failure is None
    finally:
        await channel.close()
        await servicer.stop()


@asynccontextmanager
async def running_pair(
    sockets: Sockets, *, worker: dict[str, object] | None = None, **settings: object
) -> AsyncIterator[tuple[Service, InstantWorker]]:
    """A scheduler that is ready, and its worker."""
    async with (
        running_worker(sockets("worker"), **(worker or {})) as instant,
        running_scheduler(sockets("scheduler"), sockets("worker"), **settings) as service,
    ):
        await service.until_state(types_pb2.SERVICE_STATE_READY)
        yield service, instant


def token_request(prompt: list[int], max_tokens: int = 20, **fields: object) -> scheduler_pb2.TokenRequest:
    """A greedy request."""
    request = scheduler_pb2.TokenRequest(
        request_id="r",
        prompt_token_ids=pack_int32(prompt),
        sampling=types_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens),
    )
    request.MergeFrom(scheduler_pb2.TokenRequest(**fields))  # type: ignore[arg-type]
    return request


async def generate(service: Service, request: scheduler_pb2.TokenRequest) -> list[int]:
    """The tokens of a call of Generate, of a request with one sequence."""
    tokens: list[int] = []
    async for update in service.stub.Generate(request):
        tokens += unpack_int32(update.token_ids).tolist()
    return tokens


def expected(prompt: list[int], num_tokens: int) -> list[int]:
    """What the instant worker answers."""
    return expected_tokens(prompt, num_tokens, VOCAB)
