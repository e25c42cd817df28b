"""Starts `quire serve` as a user would, and says where it is."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quire.launcher import free_port

REPOSITORY = Path(__file__).parents[2]
API_KEY = "sk-tests"


@dataclass
class Server:
    """A running server: every service a process of its own."""

    process: subprocess.Popen[str]
    port: int
    sockets: Path
    model: str
    lines: list[str]
    reader: threading.Thread

    def output(self) -> str:
        """Everything it printed; call it after the end."""
        self.reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return "".join(self.lines)

    @property
    def url(self) -> str:
        """Where HTTP is served."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def keys_file(self) -> Path:
        """Where the keys are that it accepts beside its own."""
        return self.sockets / "home" / "keys.json"

    def address(self, service: str) -> str:
        """The Unix socket of `tokenizer`, `scheduler` or `worker`."""
        return f"unix:{self.sockets}/{service}"

    def wait_until_ready(self) -> None:
        """Return once it says so and answers; AssertionError with what it printed if it ends instead."""
        while not (any("Ctrl-C stops it" in line for line in self.lines) and is_ready(self.url)):
            if self.process.poll() is not None:
                raise AssertionError("the server ended:\n" + self.output())
            time.sleep(0.05)

    def stop(self) -> int:
        """Ctrl-C; the exit status."""
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait()
        self.output()
        return status


def is_ready(url: str, path: str = "/health/ready") -> bool:
    """Whether GET `path` is answered with 200."""
    try:
        with urllib.request.urlopen(url + path) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def exposition(url: str) -> str:
    """What a gateway's /metrics shows when no service was too busy to give its own in time: those are left out."""
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {API_KEY}"})
    while True:
        with urllib.request.urlopen(request) as response:
            text: str = response.read().decode()
        up = re.findall(r"^quire_gateway_metrics_upstream_up{.*} (\S+)$", text, re.M)
        assert up, "no service's metrics are asked for"
        if all(map(float, up)):
            return text
        time.sleep(0.05)


def processes_of(sockets: Path) -> dict[str, int]:
    """Service and process id of living processes that name this server's sockets."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            words = path.read_bytes().decode(errors="replace").split("\0")
            if "-m" in words and any(f"unix:{sockets}/" in word for word in words):
                found[words[words.index("-m") + 1]] = int(path.parent.name)
    return found


def launch(model: Path | str, sockets: Path, *flags: str, api_key: str = API_KEY) -> Server:
    """Start `quire serve` without waiting for it."""
    port = free_port()
    command = [sys.executable, "-m", "quire", "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("QUIRE_")}
    environment |= {"QUIRE_HOME": str(sockets / "home"), "OMP_NUM_THREADS": "1"}
    if api_key:
        environment["QUIRE_API_KEY"] = api_key
    process = subprocess.Popen(
        [*command, "--served-model-name", "tiny", "--sockets", str(sockets), *flags],
        cwd=REPOSITORY,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    assert process.stderr is not None
    # Read for ever, so that a full pipe never stops the server.
    reader = threading.Thread(target=lines.extend, args=(process.stderr,), daemon=True)
    reader.start()
    return Server(process, port, sockets, "tiny", lines, reader)


@contextmanager
def running_server(model: Path | str, sockets: Path, *flags: str, api_key: str = API_KEY) -> Iterator[Server]:
    """A server that is ready, for the length of the block."""
    server = launch(model, sockets, *flags, api_key=api_key)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()
