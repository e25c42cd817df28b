"""A gateway on a real socket, with a scripted tokenizer service behind it."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import openai
import pytest

from gateway.server import GatewayService
from gateway.settings import GatewaySettings
from quire.service import Shutdown
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.until import until

API_KEY = "sk-quire-test-key-that-must-never-be-logged"


@dataclass
class RunningGateway:
    """A gateway in this process, and clients for it."""

    service: GatewayService
    tokenizer: FakeTokenizer
    http: httpx2.AsyncClient
    sdk: openai.AsyncOpenAI

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self.service.address}"


@pytest.fixture
async def tokenizer() -> AsyncIterator[FakeTokenizer]:
    """A tokenizer service that says hello until told otherwise."""
    fake = FakeTokenizer()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def gateway_settings() -> dict[str, object]:
    """What a test module overrides to set the gateway up differently."""
    return {}


@asynccontextmanager
async def running_service(
    tokenizer: FakeTokenizer, directory: Path, overrides: dict[str, object]
) -> AsyncIterator[GatewayService]:
    """A gateway that is ready, in this loop."""
    settings = GatewaySettings(
        **{
            "listen": "127.0.0.1:0",
            "tokenizers": (tokenizer.address,),
            "api_key": API_KEY,
            "keys_file": str(directory / "keys.json"),
            "leave_delay_s": 0.0,
            **overrides,
        }  # type: ignore[arg-type]
    )
    service = GatewayService(settings, Shutdown())
    await service.start()
    try:
        await until(lambda: service.readiness().ready)
        yield service
    finally:
        await service.stop()


@pytest.fixture
async def gateway(
    tokenizer: FakeTokenizer, tmp_path: Path, gateway_settings: dict[str, object]
) -> AsyncIterator[RunningGateway]:
    """A gateway that is ready, and clients that know its key."""
    async with running_service(tokenizer, tmp_path, gateway_settings) as service:
        url = f"http://{service.address}"
        headers = {"Authorization": f"Bearer {API_KEY}"}
        async with (
            httpx2.AsyncClient(base_url=url, headers=headers, timeout=60) as http,
            openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0, timeout=60) as sdk,
        ):
            yield RunningGateway(service, tokenizer, http, sdk)


async def events_of(gateway: RunningGateway, path: str, body: dict[str, object]) -> list[str]:
    """The `data:` of each event of a stream."""
    response = await gateway.http.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    return [event.removeprefix("data: ") for event in events]


@contextmanager
def gateway_in_thread(directory: Path) -> Iterator[str]:
    """The URL of a gateway in a loop of its own, for tests that are not asynchronous."""
    url: list[str] = []
    started, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        fake = FakeTokenizer()
        await fake.start()
        async with running_service(fake, directory, {}) as service:
            url.append(f"http://{service.address}")
            started.set()
            await stop.wait()
        await fake.stop()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(60)
        yield url[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
