"""What the running containers may do, what they publish, and how large their images are."""

import subprocess

import pytest

from tests.deploy.composed_fleet import ComposedFleet, docker

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(3600)]

SERVICES = ("front", "gateway", "tokenizer_svc", "scheduler_svc", "gpu_worker", "redis")
CONTROL_LIMIT_BYTES = 350_000_000


async def size_of(image: str) -> int:
    return int(await docker("image", "inspect", "--format", "{{.Size}}", image))


@pytest.mark.parametrize("service", SERVICES)
async def test_processes_have_no_rights_and_no_disk(fleet: ComposedFleet, service: str) -> None:
    (name, *_) = await fleet.containers(service)
    status = dict(
        line.split(":\t", 1) for line in (await docker("exec", name, "cat", "/proc/1/status")).splitlines()
    )
    assert set(status["Uid"].split()) == {"10001"}
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    with pytest.raises(subprocess.CalledProcessError) as refused:
        await docker("exec", "--user", "0", name, "touch", "/etc/written")
    assert "Read-only file system" in refused.value.stderr
    await docker("exec", name, "touch", "/tmp/written")


async def test_only_the_front_is_published(fleet: ComposedFleet) -> None:
    published = {}
    for service in SERVICES:
        for name in await fleet.containers(service):
            ports = (await fleet.inspect(name))["NetworkSettings"]["Ports"]
            published |= {(service, port): bindings for port, bindings in ports.items() if bindings}
    assert list(published) == [("front", "8000/tcp")]
    assert {binding["HostPort"] for binding in published["front", "8000/tcp"]} == {str(fleet.port)}


async def test_every_container_is_healthy_by_its_own_check(fleet: ComposedFleet) -> None:
    await fleet.healthy()


async def test_the_control_plane_is_small_and_has_no_torch(fleet: ComposedFleet) -> None:
    images = ("quire-control", "quire-worker", "quire-front", "quire-redis")
    base = await size_of("python:3.11-slim-bookworm")
    redis = await size_of("redis:7-bookworm")
    over = {name: await size_of(f"{name}:latest") - base for name in images[:3]}
    over["quire-redis"] = await size_of("quire-redis:latest") - redis
    print("MB over their bases:", {name: round(size / 1e6) for name, size in over.items()})
    assert over["quire-control"] <= CONTROL_LIMIT_BYTES
    (name, *_) = await fleet.containers("gateway")
    with pytest.raises(subprocess.CalledProcessError):
        await docker("exec", name, "python", "-c", "import torch")
