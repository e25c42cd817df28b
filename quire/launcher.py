"""Runs every service of one machine as a process of its own, on Unix sockets, and watches over them."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO

from quire.parent import PARENT_ENV
from quire.settings import ENV_PREFIX

STOP_LIMIT_S = 4.5
_RESTART_LIMIT = 5
_RESTART_WINDOW_S = 60.0


class LaunchError(Exception):
    """The services cannot run; the message is for people."""


@dataclass(frozen=True)
class ServiceCommand:
    """One service process: `python -m service *flags`, with `secrets` in its environment and nowhere else."""

    service: str
    flags: Sequence[str]
    secrets: Mapping[str, str] = field(default_factory=dict)
    number: int = 1
    """Of several processes of one service."""

    @property
    def name(self) -> str:
        """What the process is called."""
        return self.service if self.number == 1 else f"{self.service} {self.number}"


def services_directory() -> Path:
    """Where the service packages are: beside `quire` in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    bundled = package / "_services"
    return bundled if bundled.is_dir() else package.parent


class Launcher:
    """Starts services in the order given and stops them in the same order, the gateway first.

    A service that dies before all are ready ends the launch. Later it is started again, with a line that says
    so; one that keeps dying (5 times within a minute) ends everything. What services print goes to `NAME.log` in
    `logs`, if given, else to our own output.
    """

    def __init__(
        self, commands: Sequence[ServiceCommand], say: Callable[[str], None], *, logs: Path | None = None
    ) -> None:
        self._commands = commands
        self._say = say
        self._logs = logs
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = False

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each service that was started."""
        return {name: process.pid for name, process in self._processes.items()}

    async def run(self, until_ready: Callable[[], Awaitable[None]], on_ready: Callable[[], None]) -> None:
        """Run until cancelled. Raises LaunchError when a service cannot be kept running."""
        ready = asyncio.Event()

        async def announce() -> None:
            await until_ready()
            ready.set()
            on_ready()

        try:
            async with asyncio.TaskGroup() as group:
                for command in self._commands:
                    await self._start(command)
                    group.create_task(self._watch(command, ready), name=f"watch {command.name}")
                group.create_task(announce(), name="announce")
        except* LaunchError as errors:
            raise errors.exceptions[0] from None
        finally:
            await asyncio.shield(self._stop())

    async def _start(self, command: ServiceCommand) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
        path = os.pathsep.join(filter(None, (str(services_directory()), environment.get("PYTHONPATH"))))
        with self._output(command.name) as output:
            self._processes[command.name] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                command.service,
                *command.flags,
                env={**environment, **command.secrets, "PYTHONPATH": path, PARENT_ENV: str(os.getpid())},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # Ctrl-C in a terminal goes to the whole group; the launcher alone decides the order of leaving.
                start_new_session=True,
            )

    def _output(self, name: str) -> contextlib.AbstractContextManager[IO[bytes] | None]:
        return (
            contextlib.nullcontext()
            if self._logs is None
            else (self._logs / f"{name.replace(' ', '-')}.log").open("ab")
        )

    async def _watch(self, command: ServiceCommand, ready: asyncio.Event) -> None:
        deaths: list[float] = []
        while True:
            status = await self._processes[command.name].wait()
            if self._stopping:
                return
            how = (
                f"was killed by {signal.Signals(-status).name}"
                if status < 0
                else f"ended with status {status}"
            )
            if not ready.is_set():
                raise LaunchError(f"{command.name} {how} before the server was ready")
            now = time.monotonic()
            deaths = [*(at for at in deaths if now - at < _RESTART_WINDOW_S), now]
            if len(deaths) >= _RESTART_LIMIT:
                raise LaunchError(f"{command.name} {how}: {len(deaths)} times within a minute; giving up")
            self._say(f"{command.name} {how}; starting it again")
            await self._start(command)

    async def _stop(self) -> None:
        self._stopping = True
        deadline = time.monotonic() + STOP_LIMIT_S
        # The gateway's streams still need the services behind it: those leave after it.
        for _, commands in groupby(self._commands, key=lambda command: command.service):
            running = [self._processes[c.name] for c in commands if c.name in self._processes]
            waits = [process.wait() for process in running if process.returncode is None]
            for process in running:
                if process.returncode is None:
                    process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*waits), max(0.0, deadline - time.monotonic()))
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()


def free_ports(taken: Iterable[int] = ()) -> Iterator[int]:
    """TCP ports of this machine that were free a moment ago: none twice, though nobody listens yet, none of `taken`."""
    given = set(taken)
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port not in given:
            given.add(port)
            yield port


_of_this_process = free_ports()


def free_port() -> int:
    """One that this process has never given to another."""
    return next(_of_this_process)
