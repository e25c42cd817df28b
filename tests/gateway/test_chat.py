"""Chat completions through the real OpenAI SDK, over a real socket."""

import asyncio
import json
from collections.abc import Callable

import httpx2
import openai
import orjson
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from quire.v1 import tokenizer_pb2
from tests.gateway.conftest import API_KEY, RunningGateway, events_of
from tests.support.fake_tokenizer import LENGTH, Delta, last, usage

HELLO = [{"role": "user", "content": "Hi"}]
Send = Callable[[Delta], None]


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
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=API_KEY, timeout=60) as sdk:
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
            "public_prefix_tokens": 8,
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
    assert request.public_prefix_tokens == 8
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
