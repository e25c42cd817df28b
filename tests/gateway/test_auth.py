"""Who may come in: every route but health asks for a key."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.routing import Route

from quire import keys
from tests.gateway.conftest import API_KEY, RunningGateway, running_service
from tests.support.fake_tokenizer import FakeTokenizer

OPEN = {"/health", "/health/live", "/health/ready"}
GUARDED = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics", "/version", "/openapi.json"}
WRONG = ({"Authorization": ""}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"})


async def test_every_route_but_health_asks_for_a_key(gateway: RunningGateway) -> None:
    assert gateway.service.app is not None
    routes = [
        (route.path, sorted(route.methods or ())[0])
        for route in gateway.service.app.routes
        if isinstance(route, Route)
    ]
    assert len(routes) == len(gateway.service.app.routes)
    assert {path for path, _ in routes} >= GUARDED
    for path, method in routes:
        url = path.replace("{model_id:path}", "tiny")
        for headers in WRONG:
            response = await gateway.http.request(method, url, headers=headers)
            if path in OPEN:
                assert response.status_code == 200
            else:
                assert response.status_code == 401, path
                assert response.json()["error"]["code"] == "invalid_api_key"
                assert response.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "path", ["/nothing", "/health/../v1/models", "//v1/models", "/v1/models/", "/HEALTH/live"]
)
async def test_paths_that_do_not_exist_ask_for_a_key_too(gateway: RunningGateway, path: str) -> None:
    host, _, port = gateway.service.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read()).startswith(b"HTTP/1.1 401 ")
    writer.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {API_KEY}"},
        {"Authorization": f"bearer  {API_KEY}"},
        {"Authorization": "", "x-api-key": API_KEY},
    ],
)
async def test_key_comes_in_either_header(gateway: RunningGateway, headers: dict[str, str]) -> None:
    assert (await gateway.http.get("/v1/models", headers=headers)).status_code == 200


async def test_near_misses_are_refused(gateway: RunningGateway) -> None:
    for key in (API_KEY[:-1], API_KEY + "x", API_KEY.upper(), "x" * 10_000, "ü", "null"):
        headers = [(b"Authorization", b"Bearer " + key.encode("latin-1"))]
        assert (await gateway.http.get("/v1/models", headers=headers)).status_code == 401


async def test_keys_of_the_file_name_the_tenant(gateway: RunningGateway, tmp_path: Path) -> None:
    key = keys.mint()
    keys.save(tmp_path / "keys.json", [keys.record(key, "team-a")])
    headers = {"Authorization": f"Bearer {key}"}
    response = await gateway.http.post("/v1/completions", json={"prompt": "Hi"}, headers=headers)
    assert response.status_code == 200
    assert gateway.tokenizer.requests[0].tenant == "team-a"


async def test_what_a_key_is_entitled_to_goes_with_its_requests(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    path, key = tmp_path / "keys.json", keys.mint()
    record = keys.record(key, "team-a")
    sent = []
    for weight, floor, ceiling in ((1.0, 0.0, 1.0), (2.5, 0.25, 0.5)):
        keys.save(path, [replace(record, weight=weight, kv_floor=floor, kv_ceiling=ceiling)])
        headers = {"Authorization": f"Bearer {key}"}
        body = {"prompt": "Hi", "public_prefix_tokens": 32}
        assert (await gateway.http.post("/v1/completions", json=body, headers=headers)).status_code == 200
        request = gateway.tokenizer.requests[-1]
        assert request.public_prefix_tokens == 32
        policy = request.tenant_policy
        sent.append((policy.weight, policy.kv_floor, policy.kv_ceiling))
    assert sent == [(1.0, 0.0, 1.0), (2.5, 0.25, 0.5)]


async def test_a_revoked_key_stops_working_without_a_restart(gateway: RunningGateway, tmp_path: Path) -> None:
    path, key = tmp_path / "keys.json", keys.mint()
    headers = {"Authorization": f"Bearer {key}"}
    keys.save(path, [keys.record(key, "team-a")])
    assert (await gateway.http.get("/v1/models", headers=headers)).status_code == 200
    path.write_text("damaged")
    assert (await gateway.http.get("/v1/models", headers=headers)).status_code == 200
    keys.save(path, [])
    assert (await gateway.http.get("/v1/models", headers=headers)).status_code == 401
    assert (await gateway.http.get("/v1/models")).status_code == 200


async def test_keys_never_reach_the_logs(gateway: RunningGateway, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    strange = "sk-quire-another-key-that-must-not-be-logged"
    for key in (API_KEY, strange):
        headers = {"Authorization": f"Bearer {key}"}
        for body in (b"{}", b"not json", b'{"prompt": "Hi", "n": -1}'):
            await gateway.http.post("/v1/completions", content=body, headers=headers)
    metrics = await gateway.http.get("/metrics")
    for text in (caplog.text, metrics.text):
        assert API_KEY not in text
        assert strange not in text


class TestPublicMetrics:
    """With `metrics_public`."""

    @pytest.fixture
    def gateway_settings(self) -> dict[str, object]:
        return {"metrics_public": True}

    async def test_only_metrics_become_public(self, gateway: RunningGateway) -> None:
        assert (await gateway.http.get("/metrics", headers={"Authorization": ""})).status_code == 200
        assert (await gateway.http.get("/v1/models", headers={"Authorization": ""})).status_code == 401


class TestUnixSocket:
    """A gateway behind a proxy on the same machine."""

    @pytest.fixture
    async def serving(self, tokenizer: FakeTokenizer, tmp_path: Path) -> AsyncIterator[None]:
        # A socket file that a dead process left must not be in the way.
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(tmp_path / "gateway.sock"))
        async with running_service(tokenizer, tmp_path, {"listen": f"unix:{tmp_path}/gateway.sock"}):
            yield

    async def test_serves_on_a_unix_socket(self, serving: None, tmp_path: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "gateway.sock"))
        writer.write(b"GET /health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_a_key_that_may_not_go_first_is_refused_a_low_priority(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    minted = keys.mint()
    record = replace(keys.record(minted, "batch"), min_priority=5)
    keys.save(tmp_path / "keys.json", [record])
    headers = {"Authorization": f"Bearer {minted}"}
    for priority, status in ((4, 400), (-1, 400), (None, 200), (9, 200)):
        body = {"prompt": "Hi", "priority": priority}
        response = await gateway.http.post("/v1/completions", json=body, headers=headers)
        assert response.status_code == status
        if status == 400:
            assert response.json()["error"]["param"] == "priority"
    assert [request.priority for request in gateway.tokenizer.requests] == [5, 9]
