"""Services as processes around one Redis: any number of each, to be killed, drained and joined by others."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from quire.launcher import free_port
from quire.rpc.channel import open_channel
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, types_pb2, worker_pb2, worker_pb2_grpc
from tests.support.server import API_KEY, REPOSITORY, is_ready

_POLL_S = 0.05


class Fleet:
    """Processes by name; each listens on a Unix socket of its name, logs to a file of its name, shows its metrics."""

    def __init__(self, folder: Path, redis_url: str, model: Path, served_name: str) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self.model = model
        self.served_name = served_name
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.http_port = free_port()
        self._metrics_ports: dict[str, int] = {}

    @property
    def url(self) -> str:
        """Where the gateway serves HTTP."""
        return f"http://127.0.0.1:{self.http_port}"

    def address(self, name: str) -> str:
        """Where a service listens."""
        return f"unix:{self.folder}/{name}"

    # -- starting

    def start_worker(self, name: str, *flags: str) -> None:
        """A CPU worker that registers under its name."""
        model = ("--model", str(self.model), "--served-model-name", self.served_name)
        device = ("--device", "cpu", "--threads", "1", "--worker-id", name)
        self._start("gpu_worker", name, *model, *device, "--redis-url", self.redis_url, *flags)

    def start_scheduler(self, name: str, *flags: str) -> None:
        """A scheduler that finds its workers in Redis."""
        self._start("scheduler_svc", name, "--redis-url", self.redis_url, *flags)

    def start_tokenizer(self, name: str) -> None:
        """A tokenizer service that finds its schedulers in Redis."""
        self._start("tokenizer_svc", name, "--model", str(self.model), "--redis-url", self.redis_url)

    def start_gateway(self, *tokenizers: str) -> None:
        """The gateway; returns once requests would be answered."""
        addresses = ",".join(self.address(name) for name in tokenizers)
        listen = f"127.0.0.1:{self.http_port}"
        keys_file = str(self.folder / "keys.json")
        self._start("gateway", "gateway", "--tokenizers", addresses, "--keys-file", keys_file, listen=listen)
        while not is_ready(self.url):
            self.check()
            time.sleep(_POLL_S)

    def _start(self, service: str, name: str, *flags: str, listen: str = "") -> None:
        assert self.is_gone(name), f"{name} runs already"
        port = self._metrics_ports[name] = free_port()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("QUIRE_")}
        environment["OMP_NUM_THREADS"] = "1"
        if service == "gateway":
            environment["QUIRE_API_KEY"] = API_KEY
        command = [sys.executable, "-m", service, "--listen", listen or self.address(name), *flags]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*command, "--metrics-listen", f"127.0.0.1:{port}"],
                cwd=REPOSITORY,
                env=environment,
                stdout=log,
                stderr=log,
            )

    # -- ending

    def is_gone(self, name: str) -> bool:
        """Whether no process of this name runs."""
        return name not in self.processes or self.processes[name].poll() is not None

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process."""
        self.processes[name].send_signal(number)

    def end(self, name: str, number: signal.Signals) -> int:
        """Send a signal and wait for the process's end; its status."""
        self.send(name, number)
        return self.processes.pop(name).wait()

    def check(self) -> None:
        """Fail, with its log, if a process has ended that nobody ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                raise AssertionError(f"{name} ended with {process.returncode}:\n" + self.log_of(name))

    def log_of(self, name: str) -> str:
        """All that processes of this name have logged."""
        return (self.folder / f"{name}.log").read_text()

    # -- looking

    def metric(self, name: str, metric: str) -> float:
        """The sum over a metric's labels, as the process's /metrics shows it now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_ports[name]}/metrics") as response:
            text = response.read().decode()
        return sum(float(value) for value in re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", text, re.M))

    @asynccontextmanager
    async def worker(self, name: str) -> AsyncIterator["worker_pb2_grpc.WorkerAsyncStub"]:
        """A stub to a worker."""
        async with open_channel(self.address(name)) as channel:
            yield worker_pb2_grpc.WorkerStub(channel)

    async def worker_status(self, name: str) -> worker_pb2.WorkerStatus:
        """What a worker says of itself."""
        async with self.worker(name) as stub:
            return await stub.GetStatus(types_pb2.GetStatusRequest())

    async def scheduler_status(self, name: str) -> scheduler_pb2.SchedulerStatus:
        """What a scheduler says of itself and its replicas."""
        async with open_channel(self.address(name)) as channel:
            stub: scheduler_pb2_grpc.SchedulerAsyncStub = scheduler_pb2_grpc.SchedulerStub(channel)
            return await stub.GetStatus(types_pb2.GetStatusRequest())


@contextmanager
def running_fleet(folder: Path, redis_url: str, model: Path, *, served_name: str = "tiny") -> Iterator[Fleet]:
    """A fleet without processes; those that it then has are ended with the block."""
    fleet = Fleet(folder, redis_url, model, served_name)
    try:
        yield fleet
    finally:
        for process in fleet.processes.values():
            process.kill()
        for process in fleet.processes.values():
            process.wait()
