"""Spans reach a real OTLP receiver under the parent that a message carried; without one they cost nothing."""

import asyncio
import sys
from pathlib import Path

from quire import telemetry
from quire.v1 import types_pb2
from tests.support.otlp_receiver import otlp_receiver

PROGRAM = """
import sys
from quire import telemetry
telemetry.configure("example", sys.argv[1])
with telemetry.start_span("outer", None, attributes={"gen_ai.request.model": "m"}) as outer:
    carried = telemetry.trace_context(outer)
inner = telemetry.start_span("inner", type(carried).FromString(carried.SerializeToString()), start_time_ns=1)
inner.end(end_time=2)
telemetry.shutdown()
"""


async def test_a_context_carried_in_a_message_joins_spans_into_one_trace() -> None:
    async with otlp_receiver() as receiver:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PROGRAM,
            receiver.endpoint,
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert await process.wait() == 0
    outer, inner = sorted(receiver.spans, key=lambda span: span.name, reverse=True)
    assert (outer.service, outer.name, outer.parent_span_id) == ("quire-example", "outer", "")
    assert (inner.trace_id, inner.parent_span_id) == (outer.trace_id, outer.span_id)
    assert (inner.start_ns, inner.end_ns) == (1, 2)
    assert outer.attributes == {"gen_ai.request.model": "m"}


def test_without_an_endpoint_nothing_is_recorded_and_contexts_are_empty() -> None:
    telemetry.configure("example", "")
    span = telemetry.start_span(
        "anything", types_pb2.TraceContext(traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    )
    assert not telemetry.enabled()
    assert not span.is_recording()
    assert telemetry.trace_context(span) == types_pb2.TraceContext()
