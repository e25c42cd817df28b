"""One request is one trace: spans of all four services under one root, at a real OTLP receiver."""

import asyncio
from pathlib import Path

import openai
import pytest

from tests.support.checkpoints import checkpoint
from tests.support.otlp_receiver import otlp_receiver
from tests.support.server import API_KEY, launch

pytestmark = pytest.mark.e2e

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


async def test_one_trace_holds_the_spans_of_all_four_services(tmp_path: Path) -> None:
    async with otlp_receiver() as receiver:
        server = launch(checkpoint(), tmp_path, "--otlp-endpoint", receiver.endpoint)
        await asyncio.to_thread(server.wait_until_ready)
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=API_KEY) as client:
            completion = await client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": "Hello"}],
                max_tokens=5,
                extra_headers={"traceparent": TRACEPARENT},
            )
        assert await asyncio.to_thread(server.stop) == 0  # stopping flushes what is buffered

    spans = [span for span in receiver.spans if span.trace_id == TRACE_ID]
    by_id = {span.span_id: span for span in spans}
    names = {(span.service, span.name) for span in spans}
    assert {span.service for span in spans} == {
        "quire-gateway",
        "quire-tokenizer_svc",
        "quire-scheduler_svc",
        "quire-gpu_worker",
    }
    for name in ("receive", "tokenize", "queue", "prefill", "decode", "detokenize"):
        assert any(name in span_name for _, span_name in names), (name, names)
    # Every span hangs, directly or not, from the one whose parent the client sent.
    roots = [span for span in spans if span.parent_span_id not in by_id]
    assert [(root.service, root.parent_span_id) for root in roots] == [("quire-gateway", "b7ad6b7169203331")]
    attributes = {key: value for span in spans for key, value in span.attributes.items()}
    assert completion.usage is not None
    assert attributes["gen_ai.request.model"] == "tiny"
    assert attributes["gen_ai.usage.input_tokens"] == completion.usage.prompt_tokens
    assert attributes["gen_ai.usage.output_tokens"] == completion.usage.completion_tokens
    assert attributes["gen_ai.response.finish_reasons"] == [completion.choices[0].finish_reason]
    assert attributes["gen_ai.latency.time_to_first_token"] > 0
