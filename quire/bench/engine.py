"""The engine under measurement: scheduler and worker as processes of their own, and what it runs on."""

import asyncio
import contextlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire.bench.floors import ModelCost, Rooflines, model_cost
from quire.bench.machine import cpu_s
from quire.bench.shapes import shapes, write_shape
from quire.bench.token_client import Arrivals, TokenClient, token_request
from quire.bench.workloads import Workload
from quire.errors import Internal, InvalidRequest
from quire.launcher import services_directory
from quire.local import LocalServices, demo_model
from quire.model_files import read_json, resolve_model
from quire.rpc.channel import open_channel
from quire.v1 import types_pb2, worker_pb2, worker_pb2_grpc

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class EngineOptions:
    """What to measure; `worker` and `scheduler` are further settings of the services, by name."""

    model: str
    """Checkpoint, hub id, or one of our shapes; empty: the demo model."""
    device: str
    temperature: float
    worker: Mapping[str, object]
    scheduler: Mapping[str, object]


@dataclass(frozen=True)
class Run:
    """One pass over a workload."""

    arrivals: Arrivals
    steps: int
    """Steps that the worker made."""
    tokens_computed: int
    """Positions that the worker computed."""
    cpu_s: dict[str, float]
    """CPU seconds of each process, ours as `client`."""


class Engine:
    """Runs workloads one after another on services that stay up."""

    def __init__(
        self,
        services: LocalServices,
        client: TokenClient,
        worker: "worker_pb2_grpc.WorkerAsyncStub",
        description: worker_pb2.WorkerDescription,
        *,
        temperature: float,
    ) -> None:
        self.description = description
        self._services = services
        self._client = client
        self._worker = worker
        self._temperature = temperature
        self._runs = itertools.count()

    async def run(self, workload: Workload) -> Run:
        """All requests at once, stop tokens ignored; nothing cached by an earlier run is found.

        Raises the error of a request that failed, and Internal where a service died or tokens are missing.
        """
        name = f"bench-{next(self._runs)}"
        fitting = workload.within(self._client.model.vocab_size)
        before, cpu_before = await self._status(), self._cpu_s()
        arrivals = await self._services.guard(self._generate(name, fitting))
        after, cpu_after = await self._status(), self._cpu_s()
        if self._services.num_restarts:
            raise Internal("a service died during the measurement")
        return Run(
            arrivals=arrivals,
            steps=after.steps_executed - before.steps_executed,
            tokens_computed=after.tokens_computed - before.tokens_computed,
            cpu_s={name: round(cpu_after[name] - cpu_before[name], 3) for name in cpu_after},
        )

    async def _generate(self, name: str, workload: Workload) -> Arrivals:
        requests = [
            token_request(
                f"{name}-{number}",
                item.prompt,
                types_pb2.SamplingParams(
                    temperature=self._temperature, seed=number, max_tokens=item.output_len, ignore_eos=True
                ),
                cache_salt=name,
            )
            for number, item in enumerate(workload.items)
        ]
        return await self._client.generate(requests)

    async def _status(self) -> worker_pb2.WorkerStatus:
        return await self._worker.GetStatus(types_pb2.GetStatusRequest())

    def _cpu_s(self) -> dict[str, float]:
        found = {name: cpu_s(pid) for name, pid in self._services.pids.items()}
        return found | {"client": time.process_time()}


@asynccontextmanager
async def running_engine(
    options: EngineOptions, *, longest: int, say: Callable[[str], None]
) -> AsyncIterator[tuple[Engine, ModelCost, float]]:
    """An engine that is ready, what its model costs, and seconds from its start until it was ready.

    `longest` is the most tokens of any request, which the model must allow. Raises LaunchError or QuireError.
    """
    with model_directory(options.model) as (directory, load_format):
        config = read_json(directory, "config.json")
        settings: dict[str, object] = {
            "device": options.device,
            "load_format": load_format,
            "served_model_name": model_name(options.model),
            "max_model_len": max_model_len(config, longest),
        }
        started = time.perf_counter()
        services = LocalServices(
            str(directory),
            worker=settings | dict(options.worker),
            scheduler=options.scheduler,
            with_tokenizer=False,
            say=say,
        )
        async with services, open_channel(services.worker_address) as channel:
            start_s = time.perf_counter() - started
            worker: worker_pb2_grpc.WorkerAsyncStub = worker_pb2_grpc.WorkerStub(channel)
            description = await worker.Describe(worker_pb2.DescribeRequest())
            client = TokenClient(services.scheduler_address)
            session = asyncio.create_task(client.run(), name="session")
            try:
                await services.guard(client.ready())
                engine = Engine(services, client, worker, description, temperature=options.temperature)
                yield engine, cost_of_worker(config, description), start_s
            finally:
                session.cancel()
                await asyncio.gather(session, return_exceptions=True)


def model_name(model: str) -> str:
    """The name of a checkpoint, hub id or shape in reports: its last part."""
    return model.rstrip("/").rpartition("/")[2] or "demo"


@contextlib.contextmanager
def model_directory(model: str, *, weights: bool = True) -> Iterator[tuple[Path, str]]:
    """Where the model is, and how the worker loads it; a shape is written to a directory that goes afterwards.

    Without `weights` those of a hub id are not downloaded. Raises NotFound.
    """
    if model in shapes() and not Path(model).exists():
        with tempfile.TemporaryDirectory(prefix="quire-shape-") as folder:
            yield write_shape(model, Path(folder)), "dummy"
        return
    directory = resolve_model(model or str(demo_model()), weights=weights)
    has_weights = any(directory.glob("*.safetensors"))
    yield directory, "auto" if has_weights else "dummy"


async def measure_rooflines(device: str) -> Rooflines:
    """In a process of its own, which has left the device when this returns. Raises Internal with what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "kernels.bench.rooflines", "--device", device),
        cwd=services_directory(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    if process.returncode != 0:
        raise Internal(f"the rooflines could not be measured: {err.decode(errors='replace')[-500:]}")
    return Rooflines(**json.loads(out))


def max_model_len(config: Mapping[str, Any], longest: int) -> int:
    """Room for what is measured, and for 8,192 tokens where the model allows them. Raises InvalidRequest."""
    allowed = int(config.get("max_position_embeddings", longest))
    if longest > allowed:
        raise InvalidRequest(
            f"requests of {longest} tokens are longer than the model's {allowed}", param="workload"
        )
    return min(allowed, max(longest, 8192))


def cost_of_worker(config: Mapping[str, Any], description: worker_pb2.WorkerDescription) -> ModelCost:
    """What the model of a config costs as this worker holds it."""
    return model_cost(
        config,
        weight_bytes=_DTYPE_BYTES[description.model.dtype],
        kv_bytes_per_token=description.kv_cache_bytes / (description.num_blocks * description.block_size),
    )


def total(usages: Sequence[types_pb2.Usage], field: str) -> int:
    """Sum of one field of all ledgers."""
    return sum(getattr(usage, field) for usage in usages)
