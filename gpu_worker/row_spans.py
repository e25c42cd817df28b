"""Spans of traced rows: `prefill` from the row's first command to its first token, `decode` from there to its end."""

import time
from dataclasses import dataclass

import numpy as np

from quire import telemetry
from quire.packing import unpack_uint32
from quire.v1 import types_pb2, worker_pb2


@dataclass(slots=True)
class _Traced:
    trace: types_pb2.TraceContext
    num_tokens: int
    added_ns: int
    first_token_ns: int = 0
    num_sampled: int = 0


class RowSpans:
    """Watches commands and results, in turn, of rows whose request is traced; does nothing when tracing is off."""

    def __init__(self) -> None:
        self._rows: dict[int, _Traced] = {}

    def received(self, command: worker_pb2.StepCommand, at_ns: int) -> None:
        """A command that was handed to the device at `at_ns` (Unix time); before its result."""
        if not telemetry.enabled():
            return
        for row in unpack_uint32(command.remove_rows).tolist():
            self._end(row)
        for added in command.add_rows:
            if added.trace.traceparent:
                self._rows[added.row] = _Traced(added.trace, len(added.token_ids) // 4, at_ns)

    def retired(self, result: worker_pb2.StepResult) -> None:
        """A command's result."""
        if not self._rows:
            return
        now = time.time_ns()
        rows = unpack_uint32(result.rows)
        counts = unpack_uint32(result.num_tokens) if result.num_tokens else np.ones(len(rows), np.uint32)
        for row, count, reason in zip(rows.tolist(), counts.tolist(), result.finish_reasons, strict=True):
            traced = self._rows.get(row)
            if traced is None:
                continue
            traced.num_sampled += count
            if not traced.first_token_ns:
                traced.first_token_ns = now
                attributes = {"quire.tokens": traced.num_tokens}
                span = telemetry.start_span(
                    "prefill", traced.trace, start_time_ns=traced.added_ns, attributes=attributes
                )
                span.end(now)
            if reason:
                self._end(row)
        for failure in result.errors:
            self._end(failure.row)

    def trace_of(self, row: int) -> types_pb2.TraceContext | None:
        """What a row's request is traced as, if it is."""
        traced = self._rows.get(row)
        return traced.trace if traced is not None else None

    def clear(self) -> None:
        """Every row is removed."""
        for row in list(self._rows):
            self._end(row)

    def _end(self, row: int) -> None:
        traced = self._rows.pop(row, None)
        if traced is not None and traced.first_token_ns:
            attributes = {telemetry.USAGE_OUTPUT_TOKENS: traced.num_sampled}
            span = telemetry.start_span(
                "decode", traced.trace, start_time_ns=traced.first_token_ns, attributes=attributes
            )
            span.end()
