"""Plain completions through the real OpenAI SDK, over a real socket."""

import json
from collections.abc import Callable

import openai
import pytest
from openai.types import Completion

from quire.packing import unpack_int32
from quire.v1 import tokenizer_pb2
from tests.gateway.conftest import RunningGateway
from tests.support.fake_tokenizer import Delta, last, usage

Send = Callable[[Delta], None]


async def test_whole_answer_has_openais_shape(gateway: RunningGateway) -> None:
    response = await gateway.http.post("/v1/completions", json={"model": "tiny", "prompt": "Hi"})
    completion = Completion.model_validate(response.json())
    assert completion.id.startswith("cmpl-")
    assert completion.choices[0].text == "Hello there!"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 8
    assert gateway.tokenizer.requests[0].sampling.max_tokens == 16
    assert not gateway.tokenizer.requests[0].parse_response


async def test_stream(gateway: RunningGateway) -> None:
    stream = await gateway.sdk.completions.create(
        model="tiny", prompt="Hi", stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "Hello there!"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hi", ["Hi"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2, 3], [[1, 2, 3]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
    ],
)
async def test_every_kind_of_prompt(gateway: RunningGateway, prompt: object, expected: list[object]) -> None:
    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        told = request.text if request.HasField("text") else unpack_int32(request.token_ids).tolist()
        for sequence in range(request.n):
            send(last(f"{told}/{sequence}", sequence=sequence))

    gateway.tokenizer.script = script
    response = await gateway.http.post("/v1/completions", json={"prompt": prompt, "n": 2})
    body = response.json()
    texts = [choice["text"] for choice in body["choices"]]
    assert texts == [f"{told}/{sequence}" for told in expected for sequence in (0, 1)]
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(expected)))
    assert body["usage"]["prompt_tokens"] == 5 * len(expected)
    assert body["usage"]["completion_tokens"] == 2 * len(expected)


async def test_several_prompts_stream_by_index(gateway: RunningGateway) -> None:
    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        send(Delta(text=request.text, num_tokens=1))
        send(last("!", usage=usage(2)))

    gateway.tokenizer.script = script
    stream = await gateway.sdk.completions.create(model="tiny", prompt=["a", "b", "c"], stream=True)
    texts = {0: "", 1: "", 2: ""}
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "a!", 1: "b!", 2: "c!"}


async def test_one_bad_prompt_fails_the_request_and_frees_the_others(gateway: RunningGateway) -> None:
    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        if request.text == "bad":
            send(
                Delta(
                    finish_reason="FINISH_REASON_ERROR",
                    error={"code": "ERROR_CODE_INVALID_ARGUMENT", "message": "no", "param": "prompt"},  # type: ignore[arg-type]
                )
            )

    gateway.tokenizer.script = script
    with pytest.raises(openai.BadRequestError) as caught:
        await gateway.sdk.completions.create(model="tiny", prompt=["good", "bad"])
    assert caught.value.param == "prompt"
    cancelled = await gateway.tokenizer.cancelled.get()
    assert cancelled == next(r.request_id for r in gateway.tokenizer.requests if r.text == "good")
    assert gateway.tokenizer.cancelled.empty()


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs(gateway: RunningGateway, stream: bool) -> None:
    def token(text: str, logprob: float) -> tokenizer_pb2.TokenLogprob:
        rival = tokenizer_pb2.TokenLogprob(token_id=2, token="rival", logprob=-3.0)
        return tokenizer_pb2.TokenLogprob(token_id=1, token=text, logprob=logprob, top=[rival])

    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        if request.stream:
            send(Delta(text="Hel", num_tokens=1, logprobs=[token("Hel", -0.5)]))
            send(last("lo", logprobs=[token("lo", -0.25)], usage=usage(2)))
        else:
            send(last("Hello", num_tokens=2, logprobs=[token("Hel", -0.5), token("lo", -0.25)]))

    gateway.tokenizer.script = script
    body = {"model": "tiny", "prompt": "Hi", "logprobs": 1}
    merged: dict[str, list[object]] = {
        "tokens": [],
        "token_logprobs": [],
        "text_offset": [],
        "top_logprobs": [],
    }
    if stream:
        response = await gateway.http.post("/v1/completions", json={**body, "stream": True})
        events = [json.loads(event[6:]) for event in response.text.split("\n\n")[:-2]]
        parts = [event["choices"][0]["logprobs"] for event in events if event["choices"][0]["logprobs"]]
    else:
        response = await gateway.http.post("/v1/completions", json=body)
        logprobs = Completion.model_validate(response.json()).choices[0].logprobs
        assert logprobs is not None
        parts = [logprobs.model_dump()]
    for part in parts:
        for name, values in merged.items():
            values.extend(part[name])
    assert merged["tokens"] == ["Hel", "lo"]
    assert merged["token_logprobs"] == [-0.5, -0.25]
    assert merged["text_offset"] == [0, 3]
    assert merged["top_logprobs"] == [{"rival": -3.0, "Hel": -0.5}, {"rival": -3.0, "lo": -0.25}]


async def test_best_of_returns_the_likeliest_per_token_and_counts_all(gateway: RunningGateway) -> None:
    means = {"a": (-2.0, -1.0, -3.0), "b": (-1.0, -2.0, -0.5)}

    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        assert (request.n, request.sampling.logprobs) == (3, 0)
        for sequence, mean in reversed(list(enumerate(means[request.text]))):
            # The longer a choice, the lower its sum: only the mean puts them in order.
            count = 2 + 3 * sequence
            chosen = [tokenizer_pb2.TokenLogprob(token="x", logprob=mean)] * count
            end = last(f"{request.text}{sequence}", sequence=sequence, num_tokens=count, logprobs=chosen)
            send(end)

    gateway.tokenizer.script = script
    completion = await gateway.sdk.completions.create(model="tiny", prompt=["a", "b"], n=2, best_of=3)
    choices = [(choice.index, choice.text, choice.logprobs) for choice in completion.choices]
    assert choices == [(0, "a1", None), (1, "a0", None), (2, "b2", None), (3, "b0", None)]
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (10, 2 * (2 + 5 + 8))


async def test_best_of_that_chooses_nothing_streams_and_asks_for_no_logprobs(gateway: RunningGateway) -> None:
    stream = await gateway.sdk.completions.create(model="tiny", prompt="Hi", n=2, best_of=2, stream=True)
    assert {choice.index async for chunk in stream for choice in chunk.choices} == {0, 1}
    assert not gateway.tokenizer.requests[0].sampling.HasField("logprobs")


async def test_echo_and_token_ids(gateway: RunningGateway) -> None:
    async def script(request: tokenizer_pb2.TextRequest, send: Send) -> None:
        assert request.echo
        assert request.return_token_ids
        send(Delta(text=request.text, num_tokens=0))
        send(last("!", token_ids=bytes([7, 0, 0, 0])))

    gateway.tokenizer.script = script
    body = {"prompt": "Hi", "echo": True, "return_token_ids": True}
    choice = (await gateway.http.post("/v1/completions", json=body)).json()["choices"][0]
    assert (choice["text"], choice["token_ids"]) == ("Hi!", [7])


async def test_stop_string_is_named(gateway: RunningGateway) -> None:
    async def script(_: tokenizer_pb2.TextRequest, send: Send) -> None:
        send(last("text", stop_string="END"))

    gateway.tokenizer.script = script
    body = {"prompt": "Hi", "stop": "END"}
    choice = (await gateway.http.post("/v1/completions", json=body)).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "END")
    assert gateway.tokenizer.requests[0].stop == ["END"]


async def test_tokenize_and_detokenize(gateway: RunningGateway) -> None:
    tokens = (await gateway.http.post("/tokenize", json={"model": "tiny", "prompt": "Hé"})).json()
    assert tokens == {"count": 3, "max_model_len": 4096, "tokens": [72, 195, 169]}
    text = await gateway.http.post("/detokenize", json={"model": "tiny", "tokens": tokens["tokens"]})
    assert text.json() == {"prompt": "Hé"}
    chat = await gateway.http.post("/tokenize", json={"messages": [{"role": "user", "content": "Hi"}]})
    assert bytes(chat.json()["tokens"]).decode() == '[{"role":"user","content":"Hi"}]'
    refused = await gateway.http.post("/detokenize", json={"tokens": [999]})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tokens"
