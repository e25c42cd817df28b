"""Scheduler and worker as processes of their own, a session with them, and the worker's metrics."""

import asyncio
import sys
import urllib.request
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.gpu_proof.token_session import TokenSession
from quire.bench.engine import model_directory
from quire.launcher import free_port
from quire.local import LocalServices
from quire.rpc.channel import open_channel
from quire.v1 import types_pb2, worker_pb2, worker_pb2_grpc


@dataclass(frozen=True)
class Services:
    """What runs."""

    session: TokenSession
    local: LocalServices
    worker: "worker_pb2_grpc.WorkerAsyncStub"
    description: worker_pb2.WorkerDescription
    metrics_address: str

    async def worker_status(self) -> worker_pb2.WorkerStatus:
        """What the worker is doing."""
        return await self.worker.GetStatus(types_pb2.GetStatusRequest())

    async def worker_metrics(self) -> dict[str, float]:
        """The worker's metrics without labels, by name; histograms by their `_sum` and `_count`."""
        text = await asyncio.to_thread(_fetch, f"http://{self.metrics_address}/metrics")
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.labels
        }


@asynccontextmanager
async def running_services(
    model: str, worker: Mapping[str, object], scheduler: Mapping[str, object]
) -> AsyncIterator[Services]:
    """Services that are ready; `model` is a checkpoint or one of `quire bench`'s shapes.

    Raises LaunchError, with the service's own last words, where one cannot start.
    """
    metrics_address = f"127.0.0.1:{free_port()}"
    with model_directory(model) as (directory, load_format):
        settings = {"load_format": load_format, "metrics_listen": metrics_address, **worker}
        local = LocalServices(
            str(directory), worker=settings, scheduler=scheduler, with_tokenizer=False, say=say
        )
        async with local, open_channel(local.worker_address) as channel:
            stub: worker_pb2_grpc.WorkerAsyncStub = worker_pb2_grpc.WorkerStub(channel)
            session = TokenSession(local.scheduler_address)
            running = asyncio.create_task(session.run(), name="session")
            try:
                await local.guard(session.ready())
                description = await stub.Describe(worker_pb2.DescribeRequest())
                yield Services(session, local, stub, description, metrics_address)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


def say(line: str) -> None:
    """Progress, apart from the figures on stdout."""
    print(line, file=sys.stderr, flush=True)


def request_name() -> str:
    """Unique for all time."""
    return uuid.uuid4().hex


def _fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        text: str = response.read().decode()
        return text
