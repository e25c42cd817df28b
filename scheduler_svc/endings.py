"""What is known of a sequence when it has ended, as metrics and as spans of its request's trace."""

import time
from collections.abc import Iterable

from opentelemetry.util.types import AttributeValue

from quire import telemetry
from quire.v1 import types_pb2
from scheduler_svc import metrics
from scheduler_svc.core.live_requests import Ending
from scheduler_svc.settlement import LedgerRecord, Settlement

_REASONS = {
    types_pb2.FINISH_REASON_STOP: "stop",
    types_pb2.FINISH_REASON_LENGTH: "length",
    types_pb2.FINISH_REASON_CANCELLED: "abort",
    types_pb2.FINISH_REASON_ERROR: "error",
}


class EndingReporter:
    """Called once per step with the sequences that ended in it; times are the core's monotonic seconds."""

    def __init__(self, settlement: Settlement) -> None:
        self._settlement = settlement

    def report(self, endings: Iterable[Ending], now: float) -> None:
        """Count and settle them, and trace those whose request is traced."""
        for ending in endings:
            metrics.observe_end(ending, _REASONS[ending.finish_reason])
            request = ending.sequence.request
            is_error = ending.finish_reason == types_pb2.FINISH_REASON_ERROR
            self._settlement.add(
                LedgerRecord.of_end(
                    request.ledger_id,
                    ending.sequence.index,
                    request.tenant.name,
                    ending.usage,
                    is_error=is_error,
                )
            )
            trace = request.trace
            if telemetry.enabled() and trace is not None and trace.traceparent:
                _trace(ending, trace, now)


def _trace(ending: Ending, trace: types_pb2.TraceContext, now: float) -> None:
    """A `scheduler` span over the sequence's life, with a `queue` span inside; the worker traces its own part."""
    sequence, usage = ending.sequence, ending.usage
    # Monotonic times become wall-clock ones by today's difference.
    offset_ns = time.time_ns() - int(now * 1e9)
    arrived_ns = int(sequence.request.arrived_at * 1e9) + offset_ns
    ended_ns = int(sequence.ended_at * 1e9) + offset_ns
    attributes: dict[str, AttributeValue] = {
        "quire.request_id": sequence.request.request_id,
        "quire.sequence": sequence.index,
        "quire.replica": sequence.replica,
        "quire.preemptions": usage.preemptions,
        "quire.recomputed_tokens": usage.recomputed_tokens,
        telemetry.RESPONSE_FINISH_REASONS: [_REASONS[ending.finish_reason]],
        telemetry.USAGE_INPUT_TOKENS: usage.prompt_tokens,
        telemetry.USAGE_OUTPUT_TOKENS: usage.completion_tokens,
        telemetry.USAGE_CACHED_TOKENS: usage.cached_tokens,
        telemetry.LATENCY_QUEUE: usage.queue_s,
        telemetry.LATENCY_PREFILL: usage.prefill_s,
        telemetry.LATENCY_DECODE: usage.decode_s,
    }
    span = telemetry.start_span("scheduler", trace, start_time_ns=arrived_ns, attributes=attributes)
    queue = telemetry.start_span(
        "queue",
        telemetry.trace_context(span),
        start_time_ns=arrived_ns,
        attributes={
            "quire.queue_cause": sequence.queue_cause.value,
            "quire.predicted_ttft_s": sequence.request.predicted_ttft_s,
        },
    )
    queue.end(arrived_ns + int(usage.queue_s * 1e9))
    span.end(ended_ns)
