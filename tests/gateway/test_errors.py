"""Failures in OpenAI's shape, with its statuses, and the classes its SDK makes of them."""

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest

from gateway.errors import describe
from quire.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    NotFound,
    NotReady,
    Overloaded,
    QuireError,
)
from quire.v1 import tokenizer_pb2, types_pb2
from tests.gateway.conftest import RunningGateway
from tests.support.fake_tokenizer import Delta, last
from tests.support.traced_logs import TRACE_ID, TRACEPARENT, traced_logs

HELLO = [{"role": "user", "content": "Hi"}]
Send = Callable[[Delta], None]


def failing(error: QuireError, *, after: str = "") -> Any:
    """A script that fails, at once or after some text."""

    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        if after:
            send(Delta(text=after, num_tokens=1))
        raise error

    return script


async def refused(
    gateway: RunningGateway, body: dict[str, Any], path: str = "chat/completions"
) -> dict[str, Any]:
    """The error that `body` is answered with; it must be a 400."""
    default = {"messages": HELLO} if path == "chat/completions" else {"prompt": "Hi"}
    response = await gateway.http.post(f"/v1/{path}", json={**default, **body})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequest("bad", param="temperature"), 400, "invalid_value"),
        (
            InvalidRequest("maximum context length is 8 tokens", param="prompt"),
            400,
            "context_length_exceeded",
        ),
        (NotFound("no such thing"), 404, "not_found"),
        (NotFound("no such model", param="model"), 404, "model_not_found"),
        (Overloaded("queue full", retry_after_s=2.2), 429, "rate_limit_exceeded"),
        (NotReady("away"), 503, "service_unavailable"),
        (DeadlineExceeded("too late"), 504, "deadline_exceeded"),
        (Cancelled("gone"), 499, "cancelled"),
        (Internal("secret path /x"), 500, "internal_error"),
    ],
)
async def test_every_kind_of_error_has_its_status_and_code(
    gateway: RunningGateway, error: QuireError, status: int, code: str
) -> None:
    gateway.tokenizer.script = failing(error)
    for stream in (False, True):
        response = await gateway.http.post("/v1/completions", json={"prompt": "Hi", "stream": stream})
        assert response.status_code == status
        body = response.json()["error"]
        assert body["code"] == code
        assert body["param"] == (error.param or None)
        assert "secret" not in response.text
    assert gateway.tokenizer.cancelled.empty()


async def test_queue_full_says_when_to_try_again(gateway: RunningGateway) -> None:
    gateway.tokenizer.script = failing(Overloaded("the queue is full", retry_after_s=2.2))
    with pytest.raises(openai.RateLimitError) as caught:
        await gateway.sdk.chat.completions.create(model="tiny", messages=HELLO)  # type: ignore[arg-type]
    assert caught.value.response.headers["Retry-After"] == "3"


async def test_over_long_chat_names_messages(gateway: RunningGateway) -> None:
    long = InvalidRequest(
        "This model's maximum context length is 8 tokens; the prompt has 9.", param="prompt"
    )
    gateway.tokenizer.script = failing(long)
    with pytest.raises(openai.BadRequestError) as caught:
        await gateway.sdk.chat.completions.create(model="tiny", messages=HELLO)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


async def test_unknown_model(gateway: RunningGateway) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        await gateway.sdk.chat.completions.create(model="gpt-9", messages=HELLO)  # type: ignore[arg-type]
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "'tiny'" in caught.value.message
    assert (await gateway.http.get("/v1/models/gpt-9")).status_code == 404


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_failure_in_mid_stream_is_an_event(gateway: RunningGateway, path: str) -> None:
    gateway.tokenizer.script = failing(NotReady("the model went away"), after="Hel")
    body = {"messages": HELLO} if path.startswith("chat") else {"prompt": "Hi"}
    response = await gateway.http.post(f"/v1/{path}", json={**body, "stream": True})
    assert response.status_code == 200
    *_, last_event, rest = response.text.split("\n\n")
    assert rest == ""
    assert last_event.startswith('data: {"error":{"message":"the model went away"')
    assert "[DONE]" not in response.text


async def test_sdk_raises_for_a_failure_in_mid_stream(gateway: RunningGateway) -> None:
    gateway.tokenizer.script = failing(NotReady("the model went away"), after="Hel")
    stream = await gateway.sdk.chat.completions.create(model="tiny", messages=HELLO, stream=True)  # type: ignore[arg-type]
    first = await anext(aiter(stream))
    assert first.choices[0].delta.role == "assistant"

    async def read() -> str:
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    with pytest.raises(openai.APIError, match="went away"):
        await read()


async def test_a_failed_sequence_fails_the_whole_request(gateway: RunningGateway) -> None:
    async def script(_: tokenizer_pb2.TextRequest, send: Send) -> None:
        send(last("done", sequence=0))
        error = Internal("x").to_proto()
        send(Delta(sequence=1, finish_reason=types_pb2.FINISH_REASON_ERROR, error=error))

    gateway.tokenizer.script = script
    response = await gateway.http.post("/v1/completions", json={"prompt": "Hi", "n": 2})
    assert response.status_code == 500


async def test_a_bug_of_ours_tells_nothing(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr("gateway.routes.chat.chat_request", broken)
    with traced_logs() as logs:
        response = await gateway.http.post(
            "/v1/chat/completions", json={"messages": HELLO}, headers={"traceparent": TRACEPARENT}
        )
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    (line,) = logs.entries
    assert (line["event"], line["trace_id"]) == ("call failed", TRACE_ID)
    assert line["request_id"] == response.headers["X-Request-Id"]


BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": "Hi"}, "messages"),
    ({"messages": [{"content": "Hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
    ({"model": 7}, "model"),
    ({"n": 0}, "n"),
    ({"n": "2"}, "n"),
    ({"n": 10**9}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_completion_tokens": True}, "max_completion_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"min_p": 1.1}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"seed": 2**64}, "seed"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [1]}, "stop.0"),
    ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
    ({"logit_bias": {"a": 1}}, "logit_bias.a"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"9999999999": 1}}, "logit_bias"),
    ({"logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"cache_salt": "s" * 129}, "cache_salt"),
    ({"priority": 2**31}, "priority"),
    ({"timeout": 0}, "timeout"),
    ({"tools": [{"type": "function"}]}, "tools.0.function"),
    ({"tool_choice": "auto"}, "tool_choice"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
]


async def test_bad_chat_parameter_is_named(gateway: RunningGateway) -> None:
    for body, param in BAD_CHATS:
        error = await refused(gateway, body)
        assert error["param"] == param, body
        assert gateway.tokenizer.requests == []


BAD_COMPLETIONS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": [""]}, "prompt.0"),
    ({"prompt": [[]]}, "prompt.0"),
    ({"prompt": [1, "a"]}, "prompt.1"),
    ({"prompt": [-1]}, "prompt.0"),
    ({"prompt": [2**31]}, "prompt.0"),
    ({"prompt": [999_999]}, "prompt"),
    ({"prompt": ["a"] * 1025}, "prompt"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"echo": True, "logprobs": 1}, "echo"),
    ({"best_of": 0}, "best_of"),
    ({"best_of": 129}, "best_of"),
    ({"n": 3, "best_of": 2}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
]


async def test_bad_completion_parameter_is_named(gateway: RunningGateway) -> None:
    for body, param in BAD_COMPLETIONS:
        assert (await refused(gateway, body, "completions"))["param"] == param


UNSUPPORTED: list[tuple[str, Any]] = [
    ("response_format", {"type": "json_schema", "json_schema": {}}),
    ("response_format", {"type": "json_object"}),
    ("guided_json", {}),
    ("guided_regex", "a"),
    ("structured_outputs", {"choice": ["a"]}),
    ("best_of", 2),
    ("use_beam_search", True),
    ("prompt_logprobs", 0),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "x"}),
    ("functions", [{"name": "f"}]),
    ("chat_template", "{{ x }}"),
    ("bad_words", ["x"]),
]


async def test_what_we_cannot_honour_is_refused_by_name(gateway: RunningGateway) -> None:
    for name, value in UNSUPPORTED:
        error = await refused(gateway, {name: value})
        assert error["param"] == name
        assert "not supported" in error["message"]


async def test_suffix_is_refused(gateway: RunningGateway) -> None:
    assert (await refused(gateway, {"suffix": "end"}, "completions"))["param"] == "suffix"


async def test_what_asks_for_nothing_is_let_through(gateway: RunningGateway) -> None:
    body = {
        "messages": HELLO,
        "response_format": {"type": "text"},
        "best_of": 1,
        "use_beam_search": False,
        "guided_json": None,
        "modalities": ["text"],
        "tool_choice": "none",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "user": "u",
        "some_new_field": [1],
    }
    assert (await gateway.http.post("/v1/chat/completions", json=body)).status_code == 200


async def test_unknown_routes_and_methods_have_the_same_shape(gateway: RunningGateway) -> None:
    missing = await gateway.http.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
    wrong = await gateway.http.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")


async def test_request_id_is_echoed_or_made(gateway: RunningGateway) -> None:
    given = await gateway.http.get("/v1/models", headers={"X-Request-Id": "abc-1.2:3"})
    assert given.headers["X-Request-Id"] == "abc-1.2:3"
    for bad in ("", "a b", "x" * 129, "ä".encode("latin-1")):
        made = await gateway.http.get(
            "/v1/models", headers=[(b"X-Request-Id", bad if isinstance(bad, bytes) else bad.encode())]
        )
        assert len(made.headers["X-Request-Id"]) == 32
    failed = await gateway.http.get("/v1/nothing", headers={"X-Request-Id": "abc"})
    assert failed.headers["X-Request-Id"] == "abc"


async def test_the_same_request_id_twice_is_two_requests(gateway: RunningGateway) -> None:
    headers = {"X-Request-Id": "twice"}
    bodies = [gateway.http.post("/v1/completions", json={"prompt": "Hi"}, headers=headers) for _ in range(2)]
    assert [response.status_code for response in await asyncio.gather(*bodies)] == [200, 200]
    ids = [request.request_id for request in gateway.tokenizer.requests]
    assert len(set(ids)) == 2
    assert all(name.endswith(":twice") for name in ids)


def test_an_unknown_exception_is_a_500_without_its_message() -> None:
    assert b"secret" not in describe(RuntimeError("secret")).body()
    assert describe(RuntimeError("secret")).kind.status == 500
