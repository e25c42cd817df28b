"""Every service as a process of its own, with the worker that a benchmark wants: the real one, or the instant one."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quire.launcher import free_port

REPOSITORY = Path(__file__).parents[1]
API_KEY = "sk-benchmark"
SERVICES = ("gateway", "tokenizer_svc", "scheduler_svc", "worker")
INSTANT_WORKER, REAL_WORKER = "benchmarks.instant_worker", "gpu_worker"
DEMO_MODEL = REPOSITORY / "models" / "demo"

_POLL_S = 0.05


@dataclass(frozen=True)
class ServiceProcesses:
    """What runs: one process of each service."""

    port: int
    """Where the gateway serves HTTP."""
    processes: dict[str, subprocess.Popen[bytes]]
    scheduler: str
    """The scheduler's address."""
    vocab_size: int

    @property
    def url(self) -> str:
        """Where the gateway serves HTTP."""
        return f"http://127.0.0.1:{self.port}"

    async def until_ready(self) -> None:
        """Return once a request would be served. Raises RuntimeError if a process has ended."""
        while True:
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise RuntimeError(f"{name} ended with status {process.returncode}")
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(b"GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                status = await reader.readline()
                writer.close()
                if b" 200 " in status:
                    return
            await asyncio.sleep(_POLL_S)


@contextlib.contextmanager
def service_processes(
    model: Path,
    worker: Sequence[str],
    scheduler: Sequence[str] = (),
    *,
    worker_module: str = INSTANT_WORKER,
    redis_url: str = "",
) -> Iterator[ServiceProcesses]:
    """Start every service, the gateway on a free port; kill them all at the end.

    `model`: whose tokenizer is used, and whose weights by the real worker. `worker`, `scheduler`: further flags of
    these. With `redis_url` they find each other there.
    """
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as sockets:
        port = free_port()
        listen = {name: f"unix:{sockets}/{name}" for name in SERVICES} | {"gateway": f"127.0.0.1:{port}"}
        vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
        of_model = (
            ("--vocab-size", str(vocab_size)) if worker_module == INSTANT_WORKER else ("--model", str(model))
        )
        redis = ("--redis-url", redis_url) if redis_url else ()
        workers = redis or ("--workers", listen["worker"])
        schedulers = redis or ("--schedulers", listen["scheduler_svc"])
        commands: dict[str, list[str]] = {
            "worker": [worker_module, *of_model, *redis, *worker],
            "scheduler_svc": ["scheduler_svc", *workers, *scheduler],
            "tokenizer_svc": ["tokenizer_svc", "--model", str(model), *schedulers],
            "gateway": [
                *("gateway", "--tokenizers", listen["tokenizer_svc"], "--keys-file", f"{sockets}/keys"),
            ],
        }
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        processes = {
            name: subprocess.Popen(
                [sys.executable, "-m", *command, "--listen", listen[name]],
                cwd=REPOSITORY,
                env={**environment, "QUIRE_API_KEY": API_KEY} if name == "gateway" else environment,
                stderr=subprocess.DEVNULL,
            )
            for name, command in commands.items()
        }
        try:
            yield ServiceProcesses(port, processes, listen["scheduler_svc"], vocab_size)
        finally:
            for process in processes.values():
                process.send_signal(signal.SIGKILL)
                process.wait()
