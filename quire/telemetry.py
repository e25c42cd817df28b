"""OpenTelemetry traces: the only importer of the SDK. Without an endpoint nothing is recorded or paid.

A request's context travels as `TraceContext` inside messages, because services share their streams.
Attribute names are those of the OpenTelemetry GenAI semantic conventions (the repository
open-telemetry/semantic-conventions-genai), and vLLM's `gen_ai.latency.*`, which existing boards read.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import context as current
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from quire.v1 import types_pb2

OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE = "gen_ai.request.temperature"
REQUEST_TOP_P = "gen_ai.request.top_p"
REQUEST_TOP_K = "gen_ai.request.top_k"
REQUEST_SEED = "gen_ai.request.seed"
REQUEST_CHOICE_COUNT = "gen_ai.request.choice.count"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
RESPONSE_TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
USAGE_CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
LATENCY_QUEUE = "gen_ai.latency.time_in_queue"
LATENCY_FIRST_TOKEN = "gen_ai.latency.time_to_first_token"
LATENCY_E2E = "gen_ai.latency.e2e"
LATENCY_PREFILL = "gen_ai.latency.time_in_model_prefill"
LATENCY_DECODE = "gen_ai.latency.time_in_model_decode"
ERROR_TYPE = "error.type"

_FLUSH_LIMIT_S = 1.0
_propagator = TraceContextTextMapPropagator()
_tracer: trace.Tracer | None = None


def configure(service: str, endpoint: str) -> None:
    """Export this process's spans by OTLP over gRPC to `endpoint` (http://host:4317); empty: do nothing."""
    global _tracer
    if not endpoint:
        return
    # Imported here: the SDK and exporter cost start-up time that an untraced process need not pay.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(
        shutdown_on_exit=False, resource=Resource.create({SERVICE_NAME: f"quire-{service}"})
    )
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https://"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    _tracer = provider.get_tracer("quire")


def shutdown() -> None:
    """Send what is still buffered, if the collector takes it within a second: leaving must not wait for it."""
    provider = trace.get_tracer_provider()
    if hasattr(provider, "shutdown"):
        flush = threading.Thread(target=provider.shutdown, name="flush spans", daemon=True)
        flush.start()
        flush.join(_FLUSH_LIMIT_S)


def enabled() -> bool:
    """Whether spans are recorded; callers skip the work of describing them when not."""
    return _tracer is not None


def start_span(
    name: str,
    parent: types_pb2.TraceContext | None,
    *,
    start_time_ns: int | None = None,
    attributes: Mapping[str, AttributeValue] | None = None,
    kind: trace.SpanKind = trace.SpanKind.INTERNAL,
) -> trace.Span:
    """Start a span under `parent` (a root without one); a span that records nothing when tracing is off."""
    if _tracer is None:
        return trace.INVALID_SPAN
    context = Context()
    if parent is not None and parent.traceparent:
        carrier = {"traceparent": parent.traceparent, "tracestate": parent.tracestate}
        context = _propagator.extract(carrier, context)
    return _tracer.start_span(name, context, kind=kind, start_time=start_time_ns, attributes=attributes)


@contextmanager
def in_trace(request: types_pb2.TraceContext | None) -> Iterator[None]:
    """Log lines inside carry the ids of the request's trace, whether or not this process records spans."""
    if request is None or not request.traceparent:
        yield
        return
    carrier = {"traceparent": request.traceparent, "tracestate": request.tracestate}
    token = current.attach(_propagator.extract(carrier, Context()))
    try:
        yield
    finally:
        current.detach(token)


def trace_context(span: trace.Span) -> types_pb2.TraceContext:
    """What makes other services' spans children of `span`; empty for a span that is not recorded."""
    if not span.get_span_context().is_valid:
        return types_pb2.TraceContext()
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, trace.set_span_in_context(span, Context()))
    return types_pb2.TraceContext(
        traceparent=carrier.get("traceparent", ""), tracestate=carrier.get("tracestate", "")
    )
