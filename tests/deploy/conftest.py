"""One composed fleet for all tests of this folder, from a clean clone of what is committed."""

import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import openai
import pytest

from tests.deploy.composed_fleet import ComposedFleet


@pytest.fixture(scope="session")
def built_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposedFleet]:
    """Built, not up. Without a Docker that answers, the tests fail: they are never left out by themselves."""
    subprocess.run(["docker", "info"], check=True, capture_output=True)
    folder = tmp_path_factory.mktemp("deploy")
    fleet = ComposedFleet(folder, "quire-test", WORKER_THREADS="1", KV_CACHE_MEMORY="256MiB")
    fleet.down()
    print(fleet.build())
    try:
        yield fleet
    finally:
        try:
            (Path("out") / "deploy").mkdir(parents=True, exist_ok=True)
            (Path("out") / "deploy" / "fleet.log").write_text(fleet.logs())
        finally:
            fleet.down()


@pytest.fixture
async def fleet(built_fleet: ComposedFleet) -> ComposedFleet:
    """Up and ready: two gateways, two tokenizer services, one scheduler, one worker."""
    await built_fleet.up(gateway=2, tokenizer_svc=2, scheduler_svc=1, gpu_worker=1)
    await built_fleet.ready()
    return built_fleet


@pytest.fixture
async def api_key(fleet: ComposedFleet) -> str:
    """The one that the first start's log shows."""
    if not fleet.first_key:
        logs = await fleet.compose("logs", "--no-color", "gateway")
        (fleet.first_key,) = set(re.findall(r"API key, shown only this once: (\S+)", logs))
    return fleet.first_key


@pytest.fixture
async def client(fleet: ComposedFleet, api_key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """An SDK that tries nothing twice."""
    async with openai.AsyncOpenAI(
        base_url=f"{fleet.url}/v1", api_key=api_key, max_retries=0, timeout=300
    ) as found:
        yield found
