"""The newest openai SDK against every service: chat and completions, streamed and not, sync and async."""

import asyncio
from pathlib import Path

import openai
import pytest

from tests.support.server import Server, exposition
from tests.support.transformers_reference import greedy_tokens

pytestmark = pytest.mark.e2e

MESSAGES = [{"role": "user", "content": "Say something about pages."}]


def test_a_chat_streams_the_text_that_it_returns_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=24, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert streamed == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[0].choices[0].delta.role == "assistant"
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 24


def test_a_completion_streams_the_text_that_it_returns_whole(client: openai.OpenAI) -> None:
    arguments = {"model": "tiny", "prompt": "A block holds", "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**arguments)
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**arguments, stream=True))
    assert streamed == whole.choices[0].text


def test_greedy_tokens_through_http_are_those_of_transformers(client: openai.OpenAI, llama: Path) -> None:
    prompts = [[5 + (7 * i + j) % 700 for j in range(length)] for i, length in enumerate((1, 17, 300))]
    completion = client.completions.create(
        model="tiny",
        prompt=prompts,
        max_tokens=20,
        temperature=0,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    answers = [choice.model_extra["token_ids"] for choice in completion.choices]
    assert answers == [greedy_tokens(llama, prompt, 20) for prompt in prompts]


async def test_64_streams_at_once_give_what_each_gives_alone(async_client: openai.AsyncOpenAI) -> None:
    async def answer(number: int) -> str:
        stream = await async_client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": f"Count to {number}."}],
            max_tokens=16,
            temperature=0.7,
            seed=number,
            stream=True,
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    alone = {number: await answer(number) for number in (0, 31, 63)}
    together = await asyncio.gather(*(answer(number) for number in range(64)))
    assert {number: together[number] for number in alone} == alone


async def test_a_client_that_leaves_frees_its_row_and_blocks(
    async_client: openai.AsyncOpenAI, scheduler_channel
) -> None:
    from quire.v1 import scheduler_pb2_grpc, types_pb2

    scheduler = scheduler_pb2_grpc.SchedulerStub(scheduler_channel)
    stream = await async_client.completions.create(
        model="tiny", prompt="Go on for ever.", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
    )
    await anext(aiter(stream))
    running = await scheduler.GetStatus(types_pb2.GetStatusRequest())
    assert (running.sequences_running, running.replicas[0].rows_used) == (1, 1)
    await stream.close()
    seen_removed_at = None
    while True:
        status = (await scheduler.GetStatus(types_pb2.GetStatusRequest())).replicas[0]
        if status.sequences_running == 0 and seen_removed_at is None:
            seen_removed_at = status.last_step_sent
        if status.rows_used == 0 and status.blocks_used == 0:
            break
        if seen_removed_at is not None:
            assert status.last_step_sent <= seen_removed_at + 2


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_errors_are_the_sdk_s_own_exceptions(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError, match="nothing-like-it"):
        client.chat.completions.create(model="nothing-like-it", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt=[5] * 3000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=-1)
    assert caught.value.param == "temperature"


def test_metrics_of_every_service_are_behind_one_url(client: openai.OpenAI, server: Server) -> None:
    client.completions.create(model="tiny", prompt="one", max_tokens=2)
    text = exposition(server.url)
    for name in (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:time_to_first_token_seconds_count",
        "vllm:inter_token_latency_seconds_count",
        "vllm:e2e_request_latency_seconds_count",
        "quire_scheduler_step_cpu_seconds_count",
        "quire_worker_step_seconds_count",
        "quire_tokenizer_",
        "quire_gateway_",
    ):
        assert f"\n{name}" in text, name
