"""The composed fleet through the OpenAI SDK: keys, streaming, and two hundred requests at once over all containers."""

import asyncio

import openai
import pytest

from tests.deploy.composed_fleet import ComposedFleet
from tests.deploy.greedy_streams import NUM_KINDS, Outcome, stream

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(3600)]

AT_ONCE = 200


@pytest.mark.parametrize("key", ["", "sk-wrong"])
async def test_without_the_key_nothing_is_answered(fleet: ComposedFleet, key: str) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{fleet.url}/v1", api_key=key or "none", max_retries=0
    ) as stranger:
        headers = {} if key else {"Authorization": openai.Omit()}
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list(extra_headers=headers)


async def test_a_chat_is_the_same_streamed_and_not(client: openai.AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "What is Quire?"}]
    whole = await client.chat.completions.create(model="demo", messages=messages, temperature=0)
    text = ""
    async for chunk in await client.chat.completions.create(
        model="demo", messages=messages, temperature=0, stream=True
    ):
        text += chunk.choices[0].delta.content or ""
    assert text == whole.choices[0].message.content
    assert "large language models" in text


async def test_two_hundred_requests_at_once_are_right_and_every_container_has_its_share(
    fleet: ComposedFleet, client: openai.AsyncOpenAI
) -> None:
    await fleet.up(gpu_worker=3)
    await fleet.driven(3)
    undisturbed = [(await stream(client, kind)).token_ids for kind in range(NUM_KINDS)]
    shares = {
        "gateway": "quire_gateway_http_requests_total",
        "tokenizer_svc": "quire_tokenizer_requests_total",
        "gpu_worker": "quire_worker_tokens_computed_total",
    }
    containers = {name: await fleet.containers(name) for name in shares}
    before = {name: await fleet.metric(name, shares[s]) for s in shares for name in containers[s]}
    # On a slow machine the last ones would wait more than a minute, and are told to come back then.
    patient = client.with_options(max_retries=100)
    streams = await asyncio.gather(*(stream(patient, number % NUM_KINDS) for number in range(AT_ONCE)))
    outcome = Outcome.of("none", list(streams), undisturbed)
    assert (outcome.lost, outcome.repeated, outcome.errors, outcome.failures) == (0, 0, [], [])
    for service, metric in shares.items():
        for name in containers[service]:
            assert await fleet.metric(name, metric) > before[name], f"{name} had nothing to do"
