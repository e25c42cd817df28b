"""A server for `quire bench serve`: started for it as `quire serve`, or one that runs already."""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from quire.bench.machine import cpu_s
from quire.launcher import LaunchError, free_port
from quire.rpc.channel import open_channel
from quire.v1 import worker_pb2, worker_pb2_grpc

_POLL_S = 0.05
_STOP_S = 10.0
_LAST_WORDS_CHARS = 2000


@dataclass(frozen=True)
class RunningServer:
    """Where it is, and what is known of it; processes and worker only of one that was started here."""

    url: str
    api_key: str
    ready_s: float | None = None
    """From its start to the first 200 of /health/ready."""
    pid: int | None = None
    worker: worker_pb2.WorkerDescription | None = None

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds of each service so far; several processes of one service together."""
        found: dict[str, float] = {}
        for pid, name in _services_of(self.pid) if self.pid is not None else ():
            with contextlib.suppress(OSError):  # it ended meanwhile
                found[name] = found.get(name, 0.0) + cpu_s(pid)
        return found


@asynccontextmanager
async def started_server(model: Path, flags: Sequence[str]) -> AsyncIterator[RunningServer]:
    """`quire serve MODEL FLAGS` on a free port, until the end of the block. Raises LaunchError with its last words."""
    with tempfile.TemporaryDirectory(prefix="quire-") as folder:
        port, key = free_port(), secrets.token_hex(16)
        log = Path(folder) / "serve.log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QUIRE_")}
        started = time.perf_counter()
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-m",
                    "quire",
                    "serve",
                    str(model),
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(port),
                ),
                *("--sockets", f"{folder}/s", *flags),
                env={**environment, "QUIRE_API_KEY": key, "QUIRE_HOME": folder},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            while not await asyncio.to_thread(_is_ready, url):
                if process.returncode is not None:
                    words = log.read_text(errors="replace")[-_LAST_WORDS_CHARS:].strip()
                    raise LaunchError(f"quire serve ended with status {process.returncode}:\n{words}")
                await asyncio.sleep(_POLL_S)
            ready_s = time.perf_counter() - started
            async with open_channel(f"unix:{folder}/s/worker") as channel:
                stub: worker_pb2_grpc.WorkerAsyncStub = worker_pb2_grpc.WorkerStub(channel)
                worker = await stub.Describe(worker_pb2.DescribeRequest())
            yield RunningServer(url, key, ready_s, process.pid, worker)
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), _STOP_S)
            if process.returncode is None:
                process.kill()
                await process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health/ready", timeout=2.0) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _services_of(launcher: int) -> list[tuple[int, str]]:
    """Process ids and module names of the launcher's children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if parent == launcher and "-m" in words:
                found.append((int(folder.name), words[words.index("-m") + 1]))
    return found
