"""Hostile and broken requests: always a clear 4xx, and the next good request is served."""

import asyncio
import json
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.schemas.chat import ChatRequest
from gateway.schemas.completions import CompletionRequest
from tests.gateway.conftest import API_KEY, RunningGateway, gateway_in_thread

PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
DEEP = b"[" * 100_000 + b"]" * 100_000
OBJECTS = b'{"a":' * 100_000 + b"1" + b"}" * 100_000

BODIES: dict[str, bytes] = {
    "empty": b"",
    "not json": b"hello",
    "cut off": b'{"prompt": "a',
    "array": b"[]",
    "number": b"1",
    "null": b"null",
    "byte order mark": b'\xef\xbb\xbf{"prompt": "a"}',
    "utf-16": '{"prompt": "a"}'.encode("utf-16"),
    "invalid utf-8": b'{"prompt": "\xff\xfe"}',
    "overlong utf-8": b'{"prompt": "\xc0\xaf"}',
    "raw nul": b'{"prompt": "a\x00b"}',
    "nul after the end": b'{"prompt": "a"}\x00',
    "lone surrogate": b'{"prompt": "\\ud800", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "lone surrogate in a key": b'{"\\udfff": 1}',
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": Infinity}',
    "infinity by exponent": b'{"prompt": "a", "messages": [], "temperature": 1e999}',
    "number of 5000 digits": b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    "deep arrays": DEEP,
    "deep arrays in a field": b'{"prompt": ' + DEEP + b"}",
    "deep objects": OBJECTS,
    "deep tools": b'{"messages": [{"role": "user", "content": "a"}], "tools": ' + DEEP + b"}",
    "two documents": b'{"prompt": "a"}{"prompt": "b"}',
    "comment": b'{"prompt": "a" /* hi */}',
}


async def assert_serves(gateway: RunningGateway) -> None:
    """A good request is answered."""
    good = await gateway.http.post("/v1/completions", json={"prompt": "Hi"})
    assert good.status_code == 200, good.text


def assert_clear(response: httpx2.Response, statuses: tuple[int, ...] = (400,)) -> None:
    """A 4xx that says what was wrong, in the API's shape."""
    assert response.status_code in statuses, response.text
    error = response.json()["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"


async def test_bodies_that_are_not_requests(gateway: RunningGateway) -> None:
    for path in PATHS:
        for body in BODIES.values():
            headers = {"Content-Type": "application/json"}
            assert_clear(await gateway.http.post(path, content=body, headers=headers))
    await assert_serves(gateway)
    assert len(gateway.tokenizer.requests) == 1


async def test_bodies_over_the_limit(gateway: RunningGateway) -> None:
    body = b'{"prompt": "' + b"a" * 10_000_000 + b'"}'

    async def pieces() -> Any:
        for start in range(0, len(body), 1 << 18):
            yield body[start : start + (1 << 18)]

    for path in PATHS:
        assert_clear(await gateway.http.post(path, content=body), (413,))
    try:
        unannounced = await gateway.http.post(PATHS[0], content=pieces())
    except httpx2.HTTPError:
        pass  # the connection was closed on what was still being sent
    else:
        assert_clear(unannounced, (413,))
    await assert_serves(gateway)


async def test_a_client_that_asks_before_sending_is_refused_at_once(gateway: RunningGateway) -> None:
    host, _, port = gateway.service.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {API_KEY}\r\n"
        "Content-Type: application/json\r\nContent-Length: 20000000\r\nExpect: 100-continue\r\n\r\n".encode()
    )
    assert (await asyncio.wait_for(reader.read(), 60)).startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_other_content_types_are_refused(gateway: RunningGateway) -> None:
    for content_type in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "x" * 5000,
    ):
        headers = {"Content-Type": content_type}
        response = await gateway.http.post(PATHS[1], content=b'{"prompt": "a"}', headers=headers)
        assert_clear(response, (415,))
    headers = {"Content-Type": "application/json; charset=utf-8"}
    good = await gateway.http.post(PATHS[1], content=b'{"prompt": "a"}', headers=headers)
    assert good.status_code == 200


async def test_token_ids_out_of_vocabulary(gateway: RunningGateway) -> None:
    for token_id in (1000, 2**31 - 1, 2**31, 2**63, 10**40, -1, -(2**31)):
        for prompt in ([token_id], [[1], [token_id]]):
            assert_clear(await gateway.http.post("/v1/completions", json={"prompt": prompt}))
    await assert_serves(gateway)


async def test_unknown_fields_and_nuls_in_text_are_no_mistake(gateway: RunningGateway) -> None:
    body = {"prompt": "a\0b", "unknown": {"deep": [1, {"x": None}]}, "ünïcode": "\0", "": 1, "__proto__": {}}
    assert (await gateway.http.post("/v1/completions", json=body)).status_code == 200
    assert gateway.tokenizer.requests[0].text == "a\0b"


@pytest.mark.parametrize(
    "head",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%ff%fe%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
async def test_what_is_hardly_http_gets_a_4xx_or_a_closed_connection(
    gateway: RunningGateway, head: bytes
) -> None:
    host, _, port = gateway.service.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head)
    answer = await asyncio.wait_for(reader.read(), 60)
    assert not answer or answer.startswith(b"HTTP/1.1 4")
    writer.close()
    await assert_serves(gateway)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**30), max_value=10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from(["auto", "none", "user", "text", "function", "tiny"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
CHAT_FIELDS = sorted(ChatRequest.model_fields)
COMPLETION_FIELDS = sorted(CompletionRequest.model_fields)


class TestFuzz:
    """Random values in every field."""

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_random_fields(self, fuzz_target: Any, data: st.DataObject) -> None:
        chat = data.draw(st.booleans())
        names = CHAT_FIELDS if chat else COMPLETION_FIELDS
        body: dict[str, Any] = data.draw(st.dictionaries(st.sampled_from(names), JSON, max_size=3))
        body.setdefault("messages", [{"role": "user", "content": "Hi"}])
        body.setdefault("prompt", "Hi")
        status, text = fuzz_target(PATHS[0] if chat else PATHS[1], json.dumps(body).encode())
        assert status == 200 or 400 <= status < 500, (status, text)
        if status != 200:
            assert json.loads(text)["error"]["message"]

    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(body=st.binary(max_size=200), path=st.sampled_from(PATHS))
    def test_random_bytes(self, fuzz_target: Any, body: bytes, path: str) -> None:
        status, text = fuzz_target(path, body)
        # hypothesis knows the constants of the code that it tests: once it drew a request that can be served.
        assert status == 200 or 400 <= status < 500, (status, text)
        if status != 200:
            assert json.loads(text)["error"]["message"]

    @pytest.fixture
    def fuzz_target(self, tmp_path: Any) -> Any:
        """A gateway in a loop of its own, for hypothesis, which is not asynchronous."""
        with gateway_in_thread(tmp_path) as url, httpx2.Client(base_url=url, timeout=60) as http:

            def post(path: str, body: bytes) -> tuple[int, str]:
                headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
                response = http.post(path, content=body, headers=headers)
                return response.status_code, response.text

            yield post
            status, _ = post("/v1/completions", b'{"prompt": "Hi"}')
            assert status == 200
