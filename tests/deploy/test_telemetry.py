"""One request to the composed fleet is one trace over all services; a key comes from a file."""

import os
from pathlib import Path

import openai
import pytest

from tests.deploy.composed_fleet import LIMIT_S, ComposedFleet
from tests.support.otlp_receiver import otlp_receiver
from tests.support.until import until

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(3600)]

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
KEY = "sk-from-a-file"
SERVICES = {"quire-gateway", "quire-tokenizer_svc", "quire-scheduler_svc", "quire-gpu_worker"}


async def test_one_request_is_one_trace_and_the_key_is_the_secret_s(
    fleet: ComposedFleet, tmp_path: Path
) -> None:
    secret = tmp_path / "key"
    secret.write_text(KEY + "\n")
    # Whoever the container's user is must be able to read it, and the folders above.
    secret.chmod(0o644)
    for folder in (tmp_path, *list(tmp_path.parents)[:2]):
        os.chmod(folder, 0o755)
    async with otlp_receiver(await fleet.gateway_address()) as receiver:
        await fleet.change(OTLP_ENDPOINT=receiver.endpoint, QUIRE_API_KEY_FILE=str(secret))
        await fleet.ready()
        async with openai.AsyncOpenAI(base_url=f"{fleet.url}/v1", api_key=KEY) as client:
            await client.completions.create(
                model="demo",
                prompt="Pages",
                max_tokens=8,
                extra_headers={"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"},
            )
        await until(
            lambda: {span.service for span in receiver.spans if span.trace_id == TRACE_ID} == SERVICES,
            timeout_s=LIMIT_S,
        )
    spans = [span for span in receiver.spans if span.trace_id == TRACE_ID]
    ids = {span.span_id for span in spans}
    roots = [span.service for span in spans if span.parent_span_id not in ids]
    assert roots == ["quire-gateway"]
