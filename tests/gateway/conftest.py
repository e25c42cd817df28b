"""A gateway on a real socket, with a scripted tokenizer service behind it."""

from collections.abc import AsyncIterator
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


@pytest.fixture
async def gateway(
    tokenizer: FakeTokenizer, tmp_path: Path, gateway_settings: dict[str, object]
) -> AsyncIterator[RunningGateway]:
    """A gateway that is ready."""
    settings = GatewaySettings(
        **{
            "listen": "127.0.0.1:0",
            "tokenizers": (tokenizer.address,),
            "api_key": API_KEY,
            "keys_file": str(tmp_path / "keys.json"),
            **gateway_settings,
        }
    )
    service = GatewayService(settings, Shutdown())
    await service.start()
    url = f"http://{service.address}"
    async with (
        httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {API_KEY}"}, timeout=20) as http,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=API_KEY, max_retries=0, timeout=20) as sdk,
    ):
        await until(lambda: service.readiness().ready)
        yield RunningGateway(service, tokenizer, http, sdk)
    await service.stop()
