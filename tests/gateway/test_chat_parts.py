"""Tool calls, reasoning and log-probabilities of chat completions."""

import json
from collections.abc import Callable

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from quire.v1 import tokenizer_pb2
from tests.gateway.conftest import RunningGateway, events_of
from tests.support.fake_tokenizer import Delta, last, usage

HELLO = [{"role": "user", "content": "Hi"}]
Send = Callable[[Delta], None]


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls(gateway: RunningGateway, stream: bool) -> None:
    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        parts = [
            tokenizer_pb2.ToolCallDelta(index=0, id="call_1", name="weather", arguments='{"city":'),
            tokenizer_pb2.ToolCallDelta(index=0, arguments='"Oslo"}'),
            tokenizer_pb2.ToolCallDelta(index=1, id="call_2", name="time", arguments="{}"),
        ]
        if request.stream:
            for part in parts:
                send(Delta(tool_calls=[part], num_tokens=1))
            send(last(usage=usage(4)))
        else:
            send(last(tool_calls=parts, usage=usage(4)))

    gateway.tokenizer.script = script
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    body = {"model": "tiny", "messages": HELLO, "tools": [tool], "stream": stream}
    calls: dict[int, list[str]] = {}
    if stream:
        finish = None
        async for chunk in await gateway.sdk.chat.completions.create(**body):  # type: ignore[call-overload]
            finish = chunk.choices[0].finish_reason or finish
            for call in chunk.choices[0].delta.tool_calls or []:
                found = calls.setdefault(call.index, [call.id, call.function.name, ""])
                found[2] += call.function.arguments
    else:
        response = await gateway.http.post("/v1/chat/completions", json=body)
        choice = ChatCompletion.model_validate(response.json()).choices[0]
        finish = choice.finish_reason
        assert choice.message.content is None
        for index, item in enumerate(choice.message.tool_calls or []):
            assert item.type == "function"
            calls[index] = [item.id, item.function.name, item.function.arguments]
    assert finish == "tool_calls"
    assert calls == {0: ["call_1", "weather", '{"city":"Oslo"}'], 1: ["call_2", "time", "{}"]}
    assert json.loads(gateway.tokenizer.requests[0].chat.tools_json) == [tool]


async def test_one_tool_call_at_most_without_parallel_calls(gateway: RunningGateway) -> None:
    async def script(_: tokenizer_pb2.TextRequest, send: Send) -> None:
        parts = [tokenizer_pb2.ToolCallDelta(index=i, id=f"c{i}", name="f", arguments="{}") for i in (0, 1)]
        send(last(tool_calls=parts))

    gateway.tokenizer.script = script
    answer = await gateway.sdk.chat.completions.create(
        model="tiny",
        messages=HELLO,  # type: ignore[arg-type]
        tools=[{"type": "function", "function": {"name": "f"}}],
        parallel_tool_calls=False,
    )
    assert [call.id for call in answer.choices[0].message.tool_calls or []] == ["c0"]


async def test_tool_choice_none_hides_the_tools(gateway: RunningGateway) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    body = {"messages": HELLO, "tools": [tool], "tool_choice": "none"}
    assert (await gateway.http.post("/v1/chat/completions", json=body)).status_code == 200
    assert gateway.tokenizer.requests[0].chat.tools_json == ""


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_under_both_names(gateway: RunningGateway, stream: bool) -> None:
    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        if request.stream:
            send(Delta(reasoning="Hm", num_tokens=1))
            send(Delta(reasoning="m.", num_tokens=1))
            send(Delta(text="Yes", num_tokens=1))
            send(last(usage=usage(4, reasoning_tokens=2)))
        else:
            send(last("Yes", reasoning="Hmm.", usage=usage(4, reasoning_tokens=2)))

    gateway.tokenizer.script = script
    if stream:
        events = await events_of(
            gateway, "/v1/chat/completions", {"messages": HELLO, "stream_options": {"include_usage": True}}
        )
        chunks = [json.loads(event) for event in events[:-1]]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        parts = {
            name: "".join(d.get(name) or "" for d in deltas) for name in ("reasoning", "reasoning_content")
        }
        content = "".join(delta.get("content") or "" for delta in deltas)
        counts = chunks[-1]["usage"]
    else:
        body = (await gateway.http.post("/v1/chat/completions", json={"messages": HELLO})).json()
        parts, content, counts = (
            body["choices"][0]["message"],
            body["choices"][0]["message"]["content"],
            body["usage"],
        )
    assert parts["reasoning"] == parts["reasoning_content"] == "Hmm."
    assert content == "Yes"
    assert counts["completion_tokens_details"]["reasoning_tokens"] == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs(gateway: RunningGateway, stream: bool) -> None:
    def token(text: str, logprob: float) -> tokenizer_pb2.TokenLogprob:
        rivals = [
            tokenizer_pb2.TokenLogprob(token_id=1, token=text, token_bytes=text.encode(), logprob=logprob),
            tokenizer_pb2.TokenLogprob(token_id=2, token="no", token_bytes=b"no", logprob=float("-inf")),
        ]
        return tokenizer_pb2.TokenLogprob(
            token_id=1, token=text, token_bytes=text.encode(), logprob=logprob, top=rivals
        )

    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        assert request.sampling.HasField("logprobs")
        assert request.sampling.logprobs == 2
        if request.stream:
            send(Delta(text="é", num_tokens=1, logprobs=[token("é", -0.5)]))
            send(last("!", logprobs=[token("!", -0.25)], usage=usage(2)))
        else:
            send(last("é!", num_tokens=2, logprobs=[token("é", -0.5), token("!", -0.25)]))

    gateway.tokenizer.script = script
    body = {"model": "tiny", "messages": HELLO, "logprobs": True, "top_logprobs": 2}
    if stream:
        events = await events_of(gateway, "/v1/chat/completions", body)
        chunks = [ChatCompletionChunk.model_validate(json.loads(event)) for event in events[:-1]]
        shaped = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs]
        content = [item for part in shaped for item in part.content or []]
    else:
        response = await gateway.http.post("/v1/chat/completions", json=body)
        logprobs = ChatCompletion.model_validate(response.json()).choices[0].logprobs
        assert logprobs is not None
        content = logprobs.content or []
    assert [(item.token, item.bytes, item.logprob) for item in content] == [
        ("é", [195, 169], -0.5),
        ("!", [33], -0.25),
    ]
    assert [rival.logprob for rival in content[0].top_logprobs] == [-0.5, -9999.0]
