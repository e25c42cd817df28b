"""The composed fleet of a clean clone: brought up, scaled, disturbed and looked into, as an operator would."""

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.server import REPOSITORY, is_ready

LIMIT_S = 900.0
"""For whatever the fleet will do in seconds: only what never comes takes longer, however busy the machine."""

_POLL_S = 0.2
# Of a command's output when it fails: a build says in it what went wrong.
_LAST_CHARS = 4000
# Below those that the kernel gives to connections: one of these could take it while the front is away.
_PUBLISHED_PORTS = range(20000, 30000)


class ComposedFleet:
    """One Compose project. Methods that take seconds are coroutines, so that load goes on meanwhile."""

    def __init__(self, folder: Path, project: str, **variables: str) -> None:
        self.checkout = folder / "clone"
        self.project = project
        self.port = _free_published_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.first_key = ""
        """What the first start minted, once somebody has looked: containers made anew have other logs."""
        # Compose 1.29 gives a busy engine a minute for each answer.
        patience = {"COMPOSE_HTTP_TIMEOUT": str(int(LIMIT_S))}
        self._environment = {**os.environ, **patience, **variables, "PORT": str(self.port)}
        # Where both are installed, COMPOSE="docker compose" chooses version 2.
        found = "docker-compose" if shutil.which("docker-compose") else "docker compose"
        self._compose = os.environ.get("COMPOSE", found).split()
        self._scale: dict[str, int] = {}
        source = f"file://{REPOSITORY}"
        _run(["git", "clone", "--quiet", "--depth", "1", source, str(self.checkout)], cwd=folder)

    # -- as a whole

    async def up(self, **scale: int) -> None:
        """Bring the fleet to so many containers of each service; what runs and stays is left alone."""
        self._scale |= scale
        await self._up("--no-recreate")

    async def change(self, **variables: str) -> None:
        """Give variables of compose.yaml another value; containers that have them are made anew."""
        self._environment |= variables
        await self._up()

    async def _up(self, *flags: str) -> None:
        scale = [flag for name, count in self._scale.items() for flag in ("--scale", f"{name}={count}")]
        await self.compose("up", "--detach", "--no-build", *flags, *scale)

    async def ready(self) -> None:
        """Return once a request would be answered."""
        async with asyncio.timeout(LIMIT_S):
            while not await asyncio.to_thread(is_ready, self.url):
                await asyncio.sleep(_POLL_S)

    def build(self) -> str:
        """Build every image; what Compose says."""
        return self._run_compose("build")

    def logs(self) -> str:
        """Of every container that there still is."""
        return self._run_compose("logs", "--no-color", "--timestamps")

    def down(self) -> None:
        """Remove everything, the volumes and what an interrupted run left behind too."""
        profiles = ("--profile", "observability")
        self._run_compose(*profiles, "down", "--volumes", "--remove-orphans", "--timeout", "0")

    async def compose(self, *arguments: str) -> str:
        """Run Compose; its standard output."""
        return await asyncio.to_thread(self._run_compose, *arguments)

    def _run_compose(self, *arguments: str) -> str:
        command = [*self._compose, "--project-name", self.project, *arguments]
        return _run(command, cwd=self.checkout, env=self._environment)

    # -- containers

    async def containers(self, service: str) -> list[str]:
        """Names of those that run, in the order of their numbers."""
        filters = (f"com.docker.compose.project={self.project}", f"com.docker.compose.service={service}")
        flags = [flag for item in filters for flag in ("--filter", f"label={item}")]
        names = (await docker("ps", "--format", "{{.Names}}", *flags)).split()
        return sorted(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])

    async def gateway_address(self) -> str:
        """Where containers of the inner network reach this machine."""
        network = json.loads(await docker("network", "inspect", f"{self.project}_inner"))[0]
        return str(network["IPAM"]["Config"][0]["Gateway"])

    async def inspect(self, container: str) -> dict[str, Any]:
        """What Docker knows of a container."""
        found: list[dict[str, Any]] = json.loads(await docker("inspect", container))
        return found[0]

    async def metric(self, container: str, name: str) -> float:
        """The sum over a metric's labels, as the container shows it now."""
        read = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9100/metrics').read().decode())"
        text = await docker("exec", container, "python", "-c", read)
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))

    async def serving(self, container: str, address: str) -> None:
        """Return once the container's own health check is content."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    await docker("exec", container, "python", "-m", "quire.health", address)
                except subprocess.CalledProcessError:
                    await asyncio.sleep(_POLL_S)
                else:
                    return

    async def healthy(self) -> None:
        """Return once Docker calls every container healthy."""
        label = f"label=com.docker.compose.project={self.project}"
        async with asyncio.timeout(LIMIT_S):
            while True:
                states = (await docker("ps", "--filter", label, "--format", "{{.Status}}")).splitlines()
                if states and all("(healthy)" in state for state in states):
                    return
                await asyncio.sleep(_POLL_S)

    async def driven(self, num_workers: int) -> None:
        """Return once the schedulers have so many workers, all together."""
        async with asyncio.timeout(LIMIT_S):
            while await self._num_driven() != num_workers:
                await asyncio.sleep(_POLL_S)

    async def _num_driven(self) -> float:
        schedulers = await self.containers("scheduler_svc")
        counts = [self.metric(name, "quire_scheduler_workers_connected") for name in schedulers]
        try:
            return sum(await asyncio.gather(*counts))
        except subprocess.CalledProcessError:  # one that is starting
            return -1


def _free_published_port() -> int:
    """One that nobody listens on, on any address of this machine."""
    for port in random.sample(_PUBLISHED_PORTS, len(_PUBLISHED_PORTS)):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise RuntimeError(f"no port of {_PUBLISHED_PORTS} is free")


async def docker(*arguments: str) -> str:
    """Run the docker command; its standard output. Raises CalledProcessError."""
    return await asyncio.to_thread(_run, ["docker", *arguments])


def _run(command: list[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    started = time.monotonic()
    run = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    if run.returncode:
        seconds = time.monotonic() - started
        said = run.stdout[-_LAST_CHARS:] + run.stderr
        print(f"{' '.join(command)} ended with {run.returncode} after {seconds:.1f} s:\n{said}")
    run.check_returncode()
    return run.stdout
