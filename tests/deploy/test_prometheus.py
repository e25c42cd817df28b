"""Prometheus finds every container by its service's name, answers every panel, and an alert fires.

The profile's own Prometheus, but with this machine's program in place of the published image.
"""

import asyncio
import json
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from tests.deploy.composed_fleet import LIMIT_S, ComposedFleet, docker
from tests.support.dashboard import OF_FAULTS, dashboard_queries

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not shutil.which("prometheus"), reason="Prometheus is not installed"),
]

PROFILE = ("--profile", "observability")
ASK = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=5).read().decode())"


class Prometheus:
    """What the container answers."""

    def __init__(self, container: str) -> None:
        self._container = container

    async def ask(self, query: str) -> list[dict[str, Any]]:
        """The series that a query gives now."""
        url = f"http://127.0.0.1:9090/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        answer = json.loads(await docker("exec", self._container, "python", "-c", ASK, url))
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    async def up(self) -> dict[str, int]:
        """How many targets of each service answer."""
        try:
            series = await self.ask('count by (service) (up{job="quire"} == 1)')
        except subprocess.CalledProcessError:  # it is starting
            return {}
        return {item["metric"]["service"]: int(item["value"][1]) for item in series}

    async def firing(self) -> set[str]:
        """The alerts that fire."""
        return {item["metric"]["alertname"] for item in await self.ask('ALERTS{alertstate="firing"}')}

    async def reaches(self, **counts: int) -> None:
        """Return once so many targets of each service answer, and no others."""
        async with asyncio.timeout(LIMIT_S):
            while await self.up() != counts:
                await asyncio.sleep(1)


@pytest.fixture
async def prometheus(fleet: ComposedFleet, api_key: str, tmp_path: Path) -> AsyncIterator[Prometheus]:
    service = {
        "image": "quire-control",
        "entrypoint": ["/usr/local/bin/prometheus"],
        "command": ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/tmp/data"],
        "volumes": [f"{shutil.which('prometheus')}:/usr/local/bin/prometheus:ro"],
    }
    overlay = tmp_path / "prometheus.yaml"
    overlay.write_text(yaml.safe_dump({"services": {"prometheus": service}}))
    await fleet.change(COMPOSE_FILE=f"compose.yaml:{overlay}")
    try:
        await fleet.compose(*PROFILE, "up", "--detach", "--no-deps", "prometheus")
        (name,) = await fleet.containers("prometheus")
        yield Prometheus(name)
    finally:
        await fleet.compose(*PROFILE, "rm", "--stop", "--force", "prometheus")
        await fleet.change(COMPOSE_FILE="compose.yaml")


async def test_every_container_is_scraped_every_panel_has_data_and_a_lost_worker_is_an_alert(
    fleet: ComposedFleet, client: openai.AsyncOpenAI, prometheus: Prometheus
) -> None:
    counts = {"gateway": 2, "tokenizer_svc": 2, "scheduler_svc": 1}
    await prometheus.reaches(**counts, gpu_worker=1)
    await fleet.up(gpu_worker=2)
    await fleet.driven(2)
    await prometheus.reaches(**counts, gpu_worker=2)
    await fleet.up(gpu_worker=1)
    await fleet.driven(1)
    await prometheus.reaches(**counts, gpu_worker=1)

    while not await prometheus.ask("sum(rate(vllm:generation_tokens_total[15s])) > 0"):
        await client.completions.create(model="demo", prompt="Pages", max_tokens=32)
    for title, query in dashboard_queries():
        assert await prometheus.ask(query) or title in OF_FAULTS, f"{title}: {query}"
    assert not await prometheus.firing()

    (worker,) = await fleet.containers("gpu_worker")
    await docker("kill", worker)
    killed = time.monotonic()
    async with asyncio.timeout(LIMIT_S):
        while (firing := await prometheus.firing()) != {"QuireNoWorker", "QuireNoSchedulerReady"}:
            assert firing < {"QuireNoWorker", "QuireNoSchedulerReady"}
            await asyncio.sleep(1)
    print(f"{sorted(firing)} fire {time.monotonic() - killed:.0f} s after the only worker was killed")
    await docker("start", worker)
    await fleet.driven(1)
    async with asyncio.timeout(LIMIT_S):
        while await prometheus.firing():
            await asyncio.sleep(1)
