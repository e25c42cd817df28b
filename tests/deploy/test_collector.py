"""The composed fleet's spans pass the real OpenTelemetry collector, and nobody waits for it."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import yaml

from quire.telemetry import RESPONSE_ID
from tests.deploy.composed_fleet import LIMIT_S, ComposedFleet, docker
from tests.deploy.greedy_streams import NUM_KINDS, stream
from tests.support.otlp_receiver import OtlpReceiver, ReceivedSpan, otlp_receiver
from tests.support.server import REPOSITORY
from tests.support.until import until

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(3600)]

SERVICES = {"quire-gateway", "quire-tokenizer_svc", "quire-scheduler_svc", "quire-gpu_worker"}
IMAGE = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]["collector"]["image"]
PROFILE = ("--profile", "observability")


@pytest.fixture
async def store(fleet: ComposedFleet, api_key: str, tmp_path: Path) -> AsyncIterator[OtlpReceiver]:
    """What the collector takes for Jaeger; the fleet sends its spans to the collector meanwhile."""
    try:
        await docker("image", "inspect", IMAGE)
    except subprocess.CalledProcessError:
        pytest.skip(f"there is no image {IMAGE} here: pull it, or run tools/build_collector.sh")
    host = await fleet.gateway_address()
    overlay = tmp_path / "store.yaml"
    overlay.write_text(f'services: {{collector: {{extra_hosts: ["jaeger:{host}"]}}}}\n')
    async with otlp_receiver(host, 4317) as receiver:
        await fleet.change(COMPOSE_FILE=f"compose.yaml:{overlay}", OTLP_ENDPOINT="http://collector:4317")
        try:
            await fleet.compose(*PROFILE, "up", "--detach", "--no-deps", "collector")
            await fleet.ready()
            yield receiver
        finally:
            await fleet.compose(*PROFILE, "rm", "--stop", "--force", "collector")
            await fleet.change(COMPOSE_FILE="compose.yaml", OTLP_ENDPOINT="")
            await fleet.ready()


async def trace_of_a_chat(client: openai.AsyncOpenAI, store: OtlpReceiver) -> list[ReceivedSpan]:
    """The spans of a new request, once all services' are there and every one's parent."""
    messages = [{"role": "user", "content": "What is Quire?"}]
    answer = await client.chat.completions.create(model="demo", messages=messages, temperature=0)

    def spans() -> list[ReceivedSpan]:
        ids = {span.trace_id for span in store.spans if span.attributes.get(RESPONSE_ID) == answer.id}
        return [span for span in store.spans if span.trace_id in ids]

    def is_whole() -> bool:
        known = {span.span_id for span in spans()} | {""}
        return {span.service for span in spans()} == SERVICES and all(
            span.parent_span_id in known for span in spans()
        )

    await until(is_whole, timeout_s=LIMIT_S)
    return spans()


async def test_the_collector_takes_the_configuration(fleet: ComposedFleet, store: OtlpReceiver) -> None:
    validate = ("validate", "--config=/etc/quire/collector.yaml")
    await fleet.compose(*PROFILE, "run", "--rm", "--no-deps", "collector", *validate)


async def test_one_chat_is_one_trace_at_the_store(client: openai.AsyncOpenAI, store: OtlpReceiver) -> None:
    spans = await trace_of_a_chat(client, store)
    print(sorted((span.service, span.name) for span in spans))
    roots = [(span.service, span.name) for span in spans if not span.parent_span_id]
    assert roots == [("quire-gateway", "POST /v1/chat/completions")]
    assert {span.trace_id for span in store.spans} == {spans[0].trace_id}


async def test_requests_do_not_wait_for_a_collector_that_is_gone(
    fleet: ComposedFleet, client: openai.AsyncOpenAI, store: OtlpReceiver
) -> None:
    undisturbed = [await stream(client, kind) for kind in range(NUM_KINDS)]
    (name,) = await fleet.containers("collector")
    await docker("kill", name)
    found = await asyncio.gather(*(stream(client, kind) for kind in range(NUM_KINDS)))
    assert [(one.token_ids, one.error) for one in found] == [(one.token_ids, "") for one in undisturbed]
    await docker("start", name)
    assert await trace_of_a_chat(client, store)
