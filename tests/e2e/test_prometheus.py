"""A real Prometheus scrapes a real fleet, and answers every query of the dashboard."""

import asyncio
import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from quire.launcher import free_port
from tests.support.dashboard import OF_FAULTS, dashboard_queries
from tests.support.server import API_KEY, REPOSITORY, Server, is_ready

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="Prometheus is not installed"),
]

OBSERVABILITY = REPOSITORY / "deploy" / "observability"


@pytest.fixture
def prometheus(server: Server, tmp_path: Path) -> Iterator[str]:
    """Where one answers that scrapes the server's gateway, which shows the metrics of all services."""
    configuration = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(OBSERVABILITY / "alerts.yml")]
    configuration["scrape_configs"] = [
        {
            "job_name": "quire",
            "authorization": {"credentials": API_KEY},
            "static_configs": [{"targets": [f"127.0.0.1:{server.port}"], "labels": {"service": "gateway"}}],
        }
    ]
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration))
    address = f"127.0.0.1:{free_port()}"
    flags = [f"--config.file={path}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *flags, f"--web.listen-address={address}"], stderr=log)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait()


def ask(prometheus: str, query: str) -> list[dict[str, Any]]:
    """The series that a query gives now."""
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url) as response:
        answer = json.load(response)
    assert answer["status"] == "success"
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


async def test_every_panel_has_series_while_requests_run(
    server: Server, prometheus: str, async_client: openai.AsyncOpenAI
) -> None:
    generated = "sum(rate(vllm:generation_tokens_total[15s])) > 0"
    while not (await asyncio.to_thread(is_ready, prometheus, "/-/ready")):
        await asyncio.sleep(0.1)
    while not await asyncio.to_thread(ask, prometheus, generated):
        await async_client.completions.create(model="tiny", prompt="Pages", max_tokens=8, stream=False)
    # Every service answers in time for some scrape, if not for each on a busy machine.
    async with asyncio.timeout(120):
        for title, query in dashboard_queries(rate_interval="1m"):
            while not (await asyncio.to_thread(ask, prometheus, query) or title in OF_FAULTS):
                print(f"no series yet: {title}: {query}")
                await async_client.completions.create(model="tiny", prompt="Pages", max_tokens=8)
    firing = await asyncio.to_thread(ask, prometheus, 'ALERTS{alertstate="firing"}')
    assert [item["metric"]["alertname"] for item in firing] == []
