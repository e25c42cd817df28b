"""What is done to the composed fleet while streams run. Each returns when the fleet is whole again."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tests.deploy.composed_fleet import ComposedFleet, docker

PAUSE_S = 20.0
REDIS_AWAY_S = 10.0

HEALTH = {
    "gateway": "http://127.0.0.1:8000/health/ready",
    "tokenizer_svc": "127.0.0.1:8001",
    "scheduler_svc": "127.0.0.1:8002",
    "gpu_worker": "127.0.0.1:8003",
}


class Fault(NamedTuple):
    """One row of the table."""

    name: str
    inflict: Callable[[ComposedFleet], Awaitable[None]]
    may_fail: bool = False
    """Whether the design allows streams to end with one clear error."""


async def nothing(fleet: ComposedFleet) -> None:
    """For comparison."""


async def scale_up(fleet: ComposedFleet) -> None:
    """Workers 1 → 3."""
    await fleet.up(gpu_worker=3)
    await fleet.driven(3)


async def scale_down(fleet: ComposedFleet) -> None:
    """Workers 3 → 1."""
    await fleet.up(gpu_worker=1)
    await fleet.driven(1)


def killed(service: str) -> Callable[[ComposedFleet], Awaitable[None]]:
    """SIGKILL to one container, which is then started again, as a supervisor would: `docker kill` forbids Docker to."""

    async def inflict(fleet: ComposedFleet) -> None:
        victim = (await fleet.containers(service))[0]
        await docker("kill", "--signal", "KILL", victim)
        await docker("start", victim)
        await whole(fleet, service, victim)

    return inflict


def restarted(service: str) -> Callable[[ComposedFleet], Awaitable[None]]:
    """Each container restarted, the next one when the one before serves."""

    async def inflict(fleet: ComposedFleet) -> None:
        for name in await fleet.containers(service):
            await docker("restart", "--time", "45", name)
            await whole(fleet, service, name)

    return inflict


async def whole(fleet: ComposedFleet, service: str, container: str) -> None:
    """Return when the container serves, and every worker is driven."""
    await fleet.serving(container, HEALTH[service])
    await fleet.driven(len(await fleet.containers("gpu_worker")))


async def redis_away(fleet: ComposedFleet) -> None:
    """Stopped, and started later."""
    (name,) = await fleet.containers("redis")
    await docker("stop", name)
    await asyncio.sleep(REDIS_AWAY_S)
    await docker("start", name)


async def worker_paused(fleet: ComposedFleet) -> None:
    """A hung device: the process lives and its connections are open, but nothing comes."""
    name = (await fleet.containers("gpu_worker"))[0]
    await docker("pause", name)
    await asyncio.sleep(PAUSE_S)
    await docker("unpause", name)
    await fleet.driven(3)


FAULTS = (
    Fault("none, 1 worker", nothing),
    Fault("workers scaled 1 → 3", scale_up),
    Fault("none, 3 workers", nothing),
    Fault("worker killed", killed("gpu_worker")),
    Fault("scheduler killed", killed("scheduler_svc")),
    Fault("tokenizer service killed", killed("tokenizer_svc"), may_fail=True),
    Fault("Redis stopped for 10 s", redis_away),
    Fault("worker paused for 20 s", worker_paused),
    Fault("workers restarted one by one", restarted("gpu_worker")),
    Fault("schedulers restarted one by one", restarted("scheduler_svc")),
    Fault("tokenizer services restarted one by one", restarted("tokenizer_svc")),
    Fault("gateways restarted one by one", restarted("gateway")),
    Fault("workers scaled 3 → 1", scale_down),
)
