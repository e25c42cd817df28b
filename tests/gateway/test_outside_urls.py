"""URLs in a request are refused by name, and nobody connects to them."""

import asyncio

import pytest

from tests.gateway.conftest import RunningGateway
from tests.gateway.test_bad_input import assert_clear, assert_serves


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file"])
async def test_content_with_a_url_is_refused_and_nothing_is_fetched(
    gateway: RunningGateway, kind: str
) -> None:
    visits: list[str] = []
    trap = await asyncio.start_server(lambda reader, writer: visits.append("visited"), "127.0.0.1", 0)
    port = trap.sockets[0].getsockname()[1]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::ffff:127.0.0.1]:{port}", "169.254.169.254"):
        part = {"type": kind, kind: {"url": f"http://{host}/latest/meta-data"}}
        for content in ([part], [{"type": "text", "text": "see"}, part]):
            body = {"messages": [{"role": "user", "content": content}]}
            response = await gateway.http.post("/v1/chat/completions", json=body)
            assert_clear(response)
            assert response.json()["error"]["param"].startswith("messages.0.content")
    assert visits == []
    assert gateway.tokenizer.requests == []
    trap.close()
    await assert_serves(gateway)
