"""The front's own configuration in a real HAProxy, with two gateways behind it."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from gateway.pool import Admission
from gateway.server import GatewayService
from quire.launcher import free_port
from tests.gateway.conftest import API_KEY, running_service
from tests.support.fake_tokenizer import FakeTokenizer
from tests.support.server import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "front"
# Longer than as deployed: on a busy machine the front's checks come late, or their answers.
LEAVE_DELAY_S = 5.0
ERROR_FILES = sorted(FOLDER.glob("*.http"))

needs_haproxy = pytest.mark.skipif(not shutil.which("haproxy"), reason="haproxy is not installed")


@dataclass
class Front:
    """A running HAProxy, and what it stands before."""

    gateways: list[GatewayService]
    http: httpx2.AsyncClient

    async def status_of(self, prompt: str) -> int:
        """Of a completion's answer."""
        return (await self.http.post("/v1/completions", json={"prompt": prompt})).status_code


def here(port: int, addresses: Sequence[str]) -> str:
    """The configuration with this machine's addresses and paths in place of a container's."""
    text = (FOLDER / "haproxy.cfg").read_text()
    servers = "\n".join(f"  server gateway{number} {address}" for number, address in enumerate(addresses))
    text, num_backends = re.subn(r"^  server-template gateway .*$", servers, text, flags=re.MULTILINE)
    assert num_backends == 2
    assert "  bind :8000\n" in text
    return text.replace("bind :8000", f"bind 127.0.0.1:{port}").replace("/etc/quire-front", str(FOLDER))


@asynccontextmanager
async def haproxy(configuration: Path) -> AsyncIterator[None]:
    """Runs for the length of the block."""
    process = await asyncio.create_subprocess_exec("haproxy", "-db", "-f", str(configuration))
    try:
        yield
        assert process.returncode is None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """Ready, with two gateways."""
    port = free_port()
    tokenizer = FakeTokenizer()
    await tokenizer.start()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(tokenizer.stop)
        gateways = [
            await stack.enter_async_context(
                running_service(tokenizer, tmp_path, {"leave_delay_s": LEAVE_DELAY_S})
            )
            for _ in range(2)
        ]
        configuration = tmp_path / "haproxy.cfg"
        configuration.write_text(here(port, [gateway.address for gateway in gateways]))
        await stack.enter_async_context(haproxy(configuration))
        http = await stack.enter_async_context(
            httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{port}",
                headers={"Authorization": f"Bearer {API_KEY}"},
                timeout=20,
            )
        )
        await answers(http)
        yield Front(gateways, http)


async def answers(http: httpx2.AsyncClient) -> None:
    """Return once readiness comes through."""
    async with asyncio.timeout(120):
        while True:
            try:
                if (await http.get("/health/ready")).status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("path", ERROR_FILES, ids=[path.stem for path in ERROR_FILES])
def test_what_the_front_says_itself_has_the_shape_of_the_gateways_errors(path: Path) -> None:
    head, _, body = path.read_bytes().partition(b"\r\n\r\n")
    status_line, *headers = head.decode().split("\r\n")
    assert status_line.startswith(f"HTTP/1.1 {path.stem} ")
    assert "Content-Type: application/json" in headers
    error = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert ("Retry-After: 1" in headers) is error["message"].endswith("; try again")
    assert f"errorfile {path.stem} /etc/quire-front/{path.name}\n" in (FOLDER / "haproxy.cfg").read_text()


@needs_haproxy
async def test_no_request_of_any_size_fails_while_a_gateway_leaves(front: Front) -> None:
    """A prompt of 100 KB does not fit in the front's memory: it cannot be sent a second time."""
    leaver = front.gateways[0]
    drain = asyncio.create_task(leaver.drain())
    statuses = []
    while not drain.done():
        statuses += await asyncio.gather(*(front.status_of("word " * 20_000) for _ in range(4)))
    await leaver.stop()
    statuses += await asyncio.gather(*(front.status_of("word " * 20_000) for _ in range(4)))
    assert set(statuses) == {200}


@needs_haproxy
async def test_a_request_that_one_gateway_refuses_goes_to_the_other(front: Front) -> None:
    front.gateways[0].pool.admission = Admission.CLOSED
    statuses = await asyncio.gather(*(front.status_of("word " * 10_000) for _ in range(8)))
    assert set(statuses) == {200}


@needs_haproxy
async def test_a_head_that_is_too_long_is_the_gateways_to_refuse(front: Front) -> None:
    refused = await front.http.get("/health/ready", headers={"X-Long": "x" * 40_000})
    assert (refused.status_code, refused.json()["error"]["code"]) == (431, "headers_too_large")


@needs_haproxy
async def test_without_a_gateway_the_answer_says_to_try_again(front: Front) -> None:
    for gateway in front.gateways:
        await gateway.stop()
    refused = await front.http.post("/v1/completions", json={"prompt": "Hi"})
    assert refused.status_code in (502, 503)  # before its check, and after
    assert refused.json()["error"]["message"].endswith("; try again")
    assert refused.headers["Retry-After"] == "1"
