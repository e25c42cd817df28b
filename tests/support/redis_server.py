"""A real redis-server of one test: on a free port, to be stopped, killed, paused and started again."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quire.launcher import free_port

_POLL_S = 0.01


class RedisServer:
    """One address for its whole life; what it holds is lost when its process ends, unless it `keeps` it."""

    def __init__(self, folder: Path, *, keeps: bool = False) -> None:
        self.port = free_port()
        self._appendonly = "yes" if keeps else "no"
        self._log = folder / f"redis-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Return once it answers. Raises AssertionError with its log if it ends instead."""
        assert self._process is None, "it runs already"
        flags = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        # What it keeps outlives its process, not the machine: it never waits for a busy disk.
        flags += ["--appendonly", self._appendonly, "--appendfsync", "no"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                ["redis-server", *flags, "--dir", str(self._log.parent)], stdout=log, stderr=log
            )
        while not self._answers():
            if self._process.poll() is not None:
                raise AssertionError("redis-server ended:\n" + self._log.read_text())
            time.sleep(_POLL_S)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, with SIGTERM or SIGKILL; nothing happens if it does not run."""
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.send_signal(signal.SIGCONT)
        self._process.wait()
        self._process = None

    def restart(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and start it again."""
        self.stop(how)
        self.start()

    def pause(self) -> None:
        """Keep every connection open and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on after `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0) as client:
            client.sendall(b"PING\r\n")
            return client.recv(16).startswith(b"+PONG")
        return False


@contextmanager
def running_redis(folder: Path, *, keeps: bool = False) -> Iterator[RedisServer]:
    """A server that answers, for the length of the block; its log lies in `folder`."""
    server = RedisServer(folder, keeps=keeps)
    server.start()
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL)
