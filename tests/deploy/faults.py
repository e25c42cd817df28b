"""What is done to the composed fleet while streams run. Each returns when the fleet is whole again."""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum
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


class Allowed(Enum):
    """What streams may suffer by design."""

    NOTHING = "nothing"
    CLEAR_ERRORS = "one clear error, for those that waited in vain for as long as requests wait"
    BROKEN_CONNECTIONS = "a broken connection, for those that the lost gateway or front had"


class Fault(NamedTuple):
    """One row of the table."""

    name: str
    inflict: Callable[[ComposedFleet], Awaitable[None]]
    allowed: Allowed = Allowed.NOTHING


async def nothing(fleet: ComposedFleet) -> None:
    """For comparison."""


def scaled(service: str, count: int) -> Callable[[ComposedFleet], Awaitable[None]]:
    """To so many containers, all of which serve."""

    async def inflict(fleet: ComposedFleet) -> None:
        await fleet.up(**{service: count})
        for name in await fleet.containers(service):
            await whole(fleet, service, name)

    return inflict


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


async def front_killed(fleet: ComposedFleet) -> None:
    """SIGKILL to the only one, which is then started again."""
    (name,) = await fleet.containers("front")
    await docker("kill", "--signal", "KILL", name)
    await docker("start", name)
    await fleet.ready()


async def front_restarted(fleet: ComposedFleet) -> None:
    """It lets go of its port first, and lets streams end: nobody comes in meanwhile."""
    (name,) = await fleet.containers("front")
    await docker("restart", "--time", "45", name)
    await fleet.ready()


async def redis_away(fleet: ComposedFleet) -> None:
    """Stopped, and started later."""
    (name,) = await fleet.containers("redis")
    await docker("stop", name)
    await asyncio.sleep(REDIS_AWAY_S)
    await docker("start", name)


async def redis_emptied(fleet: ComposedFleet) -> None:
    """As after a restart without its disk."""
    (name,) = await fleet.containers("redis")
    await docker("exec", name, "redis-cli", "flushall")
    await fleet.driven(len(await fleet.containers("gpu_worker")))


def paused(service: str, seconds: float) -> Callable[[ComposedFleet], Awaitable[None]]:
    """As if hung: the process lives and its connections are open, but nothing comes."""

    async def inflict(fleet: ComposedFleet) -> None:
        name = (await fleet.containers(service))[0]
        await docker("pause", name)
        await asyncio.sleep(seconds)
        await docker("unpause", name)
        await fleet.driven(len(await fleet.containers("gpu_worker")))

    return inflict


async def worker_cut_off(fleet: ComposedFleet) -> None:
    """Its network is taken away and later given back: both ends keep connections on which nothing passes."""
    name = (await fleet.containers("gpu_worker"))[0]
    network = f"{fleet.project}_inner"
    await docker("network", "disconnect", network, name)
    await asyncio.sleep(PAUSE_S)
    await docker("network", "connect", network, name)
    await fleet.driven(len(await fleet.containers("gpu_worker")))


FAULTS = (
    Fault("none, 1 worker", nothing),
    Fault("the only worker killed", killed("gpu_worker")),
    Fault("the only worker restarted", restarted("gpu_worker")),
    Fault("workers scaled 1 → 3", scaled("gpu_worker", 3)),
    Fault("none, 3 workers", nothing),
    Fault("worker killed", killed("gpu_worker")),
    Fault("worker paused for 20 s", paused("gpu_worker", PAUSE_S)),
    Fault("worker without network for 20 s", worker_cut_off),
    Fault("workers restarted one by one", restarted("gpu_worker")),
    Fault("the only scheduler killed", killed("scheduler_svc")),
    Fault("the only scheduler restarted", restarted("scheduler_svc")),
    Fault("schedulers scaled 1 → 2", scaled("scheduler_svc", 2)),
    Fault("one of two schedulers killed", killed("scheduler_svc")),
    Fault("schedulers restarted one by one", restarted("scheduler_svc")),
    Fault("schedulers scaled 2 → 1", scaled("scheduler_svc", 1)),
    Fault("tokenizer services scaled 2 → 1", scaled("tokenizer_svc", 1)),
    Fault("the only tokenizer service killed", killed("tokenizer_svc")),
    # It leaves when its streams have ended, and new ones wait from when it began to: 30 s may be too short for both.
    Fault("the only tokenizer service restarted", restarted("tokenizer_svc"), Allowed.CLEAR_ERRORS),
    Fault("tokenizer services scaled 1 → 2", scaled("tokenizer_svc", 2)),
    Fault("tokenizer service killed", killed("tokenizer_svc")),
    Fault("tokenizer services restarted one by one", restarted("tokenizer_svc")),
    Fault("Redis stopped for 10 s", redis_away),
    Fault("Redis paused for 10 s", paused("redis", REDIS_AWAY_S)),
    Fault("Redis emptied", redis_emptied),
    Fault("gateway killed", killed("gateway"), Allowed.BROKEN_CONNECTIONS),
    Fault("gateways restarted one by one", restarted("gateway")),
    Fault("front killed", front_killed, Allowed.BROKEN_CONNECTIONS),
    Fault("front restarted", front_restarted, Allowed.BROKEN_CONNECTIONS),
    Fault("workers scaled 3 → 1", scaled("gpu_worker", 1)),
)
