"""Chat completions through the real OpenAI SDK, over a real socket."""

import asyncio
import json
from collections.abc import Callable

import httpx2
import openai
import orjson
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from quire.v1 import tokenizer_pb2
from tests.gateway.conftest import API_KEY, RunningGateway
from tests.support.fake_tokenizer import LENGTH, Delta, last, usage

HELLO = [{"role": "user", "content": "Hi"}]
Send = Callable[[Delta], None]


async def events_of(gateway: RunningGateway, path: str, body: dict[str, object]) -> list[str]:
    """The `data:` of each event of a stream."""
    response = await gateway.http.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    return [event.removeprefix("data: ") for event in events]


async def test_whole_answer_has_openais_shape(gateway: RunningGateway) -> None:
    response = await gateway.http.post("/v1/chat/completions", json={"model": "tiny", "messages": HELLO})
    body = response.json()
    completion = ChatCompletion.model_validate(body)
    assert completion.id.startswith("chatcmpl-")
    assert completion.model == "tiny"
    assert completion.system_fingerprint
    assert completion.system_fingerprint.startswith("fp_")
    assert completion.choices[0].message.content == "Hello there!"
    assert completion.choices[0].finish_reason == "stop"
    assert body["choices"][0]["stop_reason"] == 2
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_stream_has_openais_shape(gateway: RunningGateway) -> None:
    body = {"model": "tiny", "messages": HELLO, "stream_options": {"include_usage": True}}
    events = await events_of(gateway, "/v1/chat/completions", body)
    assert events[-1] == "[DONE]"
    chunks = [ChatCompletionChunk.model_validate(json.loads(event)) for event in events[:-1]]
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "Hello there!"
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_usage_comes_only_when_asked_for(gateway: RunningGateway) -> None:
    events = await events_of(gateway, "/v1/chat/completions", {"messages": HELLO})
    assert all("usage" not in json.loads(event) for event in events[:-1])


async def test_usage_grows_in_every_chunk_when_asked_for(gateway: RunningGateway) -> None:
    gate = asyncio.Event()

    async def script(_: tokenizer_pb2.TextRequest, send: Send) -> None:
        send(Delta(text="a", num_tokens=1, prompt_tokens=5))
        await gate.wait()
        send(last("b", usage=usage(2)))

    gateway.tokenizer.script = script
    stream = await gateway.sdk.chat.completions.create(
        model="tiny",
        messages=HELLO,  # type: ignore[arg-type]
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},  # type: ignore[typeddict-unknown-key]
    )
    counts = []
    async for chunk in stream:
        assert chunk.usage is not None
        counts.append((chunk.usage.prompt_tokens, chunk.usage.completion_tokens))
        gate.set()
    assert counts[0] == (5, 1)
    assert counts[-1] == (5, 2)


async def test_async_sdk_streams(gateway: RunningGateway) -> None:
    stream = await gateway.sdk.chat.completions.create(model="tiny", messages=HELLO, stream=True)  # type: ignore[arg-type]
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello there!"


async def test_sync_sdk_works(gateway: RunningGateway) -> None:
    def talk() -> tuple[str | None, str]:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=API_KEY, timeout=20) as sdk:
            whole = sdk.chat.completions.create(model="tiny", messages=HELLO)  # type: ignore[arg-type]
            stream = sdk.chat.completions.create(model="tiny", messages=HELLO, stream=True)  # type: ignore[arg-type]
            return whole.choices[0].message.content, "".join(c.choices[0].delta.content or "" for c in stream)

    assert await asyncio.to_thread(talk) == ("Hello there!", "Hello there!")


async def test_sdk_works_in_process(gateway: RunningGateway) -> None:
    assert gateway.service.app is not None
    transport = httpx2.ASGITransport(app=gateway.service.app)
    async with (
        httpx2.AsyncClient(transport=transport) as http,
        openai.AsyncOpenAI(base_url="http://gateway/v1", api_key=API_KEY, http_client=http) as sdk,
    ):
        whole = await sdk.chat.completions.create(model="tiny", messages=HELLO)  # type: ignore[arg-type]
        assert whole.choices[0].message.content == "Hello there!"
        stream = await sdk.chat.completions.create(model="tiny", messages=HELLO, stream=True)  # type: ignore[arg-type]
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "Hello there!"
    assert [model.id for model in (await gateway.sdk.models.list()).data] == ["tiny"]
    assert (await gateway.sdk.models.retrieve("tiny")).owned_by == "quire"


async def test_sixty_four_at_once_each_get_their_own_answer(gateway: RunningGateway) -> None:
    all_here = asyncio.Barrier(64)

    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        name = json.loads(request.chat.messages_json)[0]["content"]
        await all_here.wait()
        for _ in range(20):
            send(Delta(text=f"{name} ", num_tokens=1))
            await asyncio.sleep(0)
        send(last(usage=usage(21)))

    gateway.tokenizer.script = script

    async def ask(index: int, stream: bool) -> None:
        message = [{"role": "user", "content": f"client{index}"}]
        expected = f"client{index} " * 20
        if stream:
            chunks = await gateway.sdk.chat.completions.create(model="tiny", messages=message, stream=True)  # type: ignore[arg-type]
            assert "".join([c.choices[0].delta.content or "" async for c in chunks]) == expected
        else:
            answer = await gateway.sdk.chat.completions.create(model="tiny", messages=message)  # type: ignore[arg-type]
            assert answer.choices[0].message.content == expected

    await asyncio.gather(*(ask(index, index % 2 == 0) for index in range(64)))
    assert len({request.request_id for request in gateway.tokenizer.requests}) == 64


async def test_parameters_reach_the_tokenizer(gateway: RunningGateway) -> None:
    await gateway.sdk.chat.completions.create(
        model="tiny",
        messages=[{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi"}],
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=7,
        seed=-1,
        stop=["END", "\n"],
        n=2,
        logit_bias={"5": -100, "7": 1},
        frequency_penalty=0.1,
        presence_penalty=0.2,
        extra_body={
            "top_k": 4,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "min_tokens": 2,
            "ignore_eos": True,
            "stop_token_ids": [9],
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "priority": -3,
            "cache_salt": "salt",
            "return_token_ids": True,
            "chat_template_kwargs": {"enable_thinking": False},
            "timeout": 12.5,
        },
    )
    request = gateway.tokenizer.requests[0]
    sampling = request.sampling
    assert [message["role"] for message in json.loads(request.chat.messages_json)] == ["system", "user"]
    assert json.loads(request.chat.template_kwargs_json) == {"enable_thinking": False}
    assert request.parse_response
    assert (request.n, request.stop, request.priority, request.cache_salt) == (2, ["END", "\n"], -3, "salt")
    assert request.include_stop_str_in_output
    assert request.return_token_ids
    assert request.HasField("skip_special_tokens")
    assert not request.skip_special_tokens
    assert request.timeout_s == 12.5
    assert request.tenant == "default"
    assert (sampling.temperature, sampling.top_k, sampling.max_tokens, sampling.min_tokens) == (0.5, 4, 7, 2)
    assert sampling.seed == 2**64 - 1
    assert sampling.ignore_eos
    assert sampling.logit_bias_token_ids == bytes([5, 0, 0, 0, 7, 0, 0, 0])
    assert sampling.stop_token_ids == bytes([9, 0, 0, 0])
    assert not sampling.HasField("logprobs")


async def test_absent_parameters_stay_absent(gateway: RunningGateway) -> None:
    await gateway.http.post(
        "/v1/chat/completions", json={"messages": HELLO, "temperature": None, "stop": None}
    )
    sampling = gateway.tokenizer.requests[0].sampling
    absent = ("temperature", "top_p", "seed", "max_tokens", "repetition_penalty", "logprobs")
    assert not any(sampling.HasField(name) for name in absent)  # type: ignore[arg-type]
    assert not gateway.tokenizer.requests[0].chat.HasField("add_generation_prompt")


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


async def test_choices_of_one_request_are_kept_apart(gateway: RunningGateway) -> None:
    async def script(_: tokenizer_pb2.TextRequest, send: Send) -> None:
        for word in ("one ", "two "):
            for sequence in (2, 0, 1):
                send(Delta(sequence=sequence, text=f"{sequence}{word}", num_tokens=1, prompt_tokens=5))
        for sequence in range(3):
            send(last(sequence=sequence, finish_reason=LENGTH, usage=usage(3)))

    gateway.tokenizer.script = script
    stream = await gateway.sdk.chat.completions.create(
        model="tiny",
        messages=HELLO,  # type: ignore[arg-type]
        n=3,
        stream=True,
        stream_options={"include_usage": True},
    )
    texts = ["", "", ""]
    finishes = []
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes += [choice.finish_reason] if choice.finish_reason else []
        if chunk.usage:
            assert (chunk.usage.prompt_tokens, chunk.usage.completion_tokens) == (5, 9)
    assert texts == ["0one 0two ", "1one 1two ", "2one 2two "]
    assert finishes == ["length"] * 3


async def test_text_that_json_must_escape_survives(gateway: RunningGateway) -> None:
    text = 'quote " backslash \\ newline \n nul \0 emoji 👩‍👩‍👧 separators \u2028\u2029 data: [DONE]\n\n'

    async def script(_: tokenizer_pb2.TextRequest, send: Send) -> None:
        send(Delta(text=text, num_tokens=1))
        send(last(usage=usage(2)))

    gateway.tokenizer.script = script
    stream = await gateway.sdk.chat.completions.create(model="tiny", messages=HELLO, stream=True)  # type: ignore[arg-type]
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == text


async def test_messages_go_to_the_template_as_they_came(gateway: RunningGateway) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Wie spät ist es?\0"}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "look it up",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "time", "arguments": '{"tz": "CET"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
    ]
    response = await gateway.http.post("/v1/chat/completions", content=orjson.dumps({"messages": messages}))
    assert response.status_code == 200, response.text
    assert json.loads(gateway.tokenizer.requests[0].chat.messages_json) == messages


async def test_final_message_is_continued(gateway: RunningGateway) -> None:
    body = {"messages": [*HELLO, {"role": "assistant", "content": "Hel"}], "continue_final_message": True}
    assert (await gateway.http.post("/v1/chat/completions", json=body)).status_code == 200
    chat = gateway.tokenizer.requests[0].chat
    assert chat.continue_final_message
    assert chat.HasField("add_generation_prompt")
    assert not chat.add_generation_prompt
