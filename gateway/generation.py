"""One API call's requests, from submission to the line that metrics and trace keep of it."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from opentelemetry import trace

from gateway import metrics
from gateway.answer import Answer, ChoiceDelta
from gateway.calls import Call
from gateway.live_text import LiveText
from gateway.rounds import WriteRounds
from gateway.usage import UsageTotals
from quire import telemetry
from quire.errors import Overloaded, QuireError
from quire.v1 import tokenizer_pb2, types_pb2


@dataclass(slots=True)
class _Timing:
    first_s: float = 0.0
    last_s: float = 0.0
    num_writes: int = 0
    finish_reasons: dict[int, str] = field(default_factory=dict)


class Generation:
    """The submitted requests of one call (one per prompt) and their common answer.

    `submit` sends a request for `model` to where that is served. `close` must be called once the call is over, however
    it ended: it cancels what has not finished.
    """

    def __init__(
        self,
        submit: Callable[[LiveText], None],
        model: types_pb2.ModelDescription,
        call: Call,
        completion_id: str,
        requests: Sequence[tokenizer_pb2.TextRequest],
        rounds: WriteRounds,
        max_buffered_bytes: int,
    ) -> None:
        self._call = call
        self._requests = requests
        self._live: list[LiveText] = []
        self._error: QuireError | None = None
        self._timing = _Timing()
        self.completion_id = completion_id
        self.num_sequences = requests[0].n
        self.streaming = requests[0].stream
        self.usage = UsageTotals(self.num_sequences)
        self.answer = Answer(
            rounds,
            max_buffered_bytes=max_buffered_bytes if self.streaming else None,
            keep_token_ids=requests[0].return_token_ids,
            on_failure=self._cancel,
        )
        self._submit(submit, model)

    @property
    def model(self) -> types_pb2.ModelDescription:
        """What it is served with; settled once something has come of it."""
        return self._live[0].model

    async def next(self) -> list[ChoiceDelta]:
        """What has come since the last call; empty when all is there. Raises QuireError."""
        try:
            batch = await self.answer.next()
        except QuireError as error:
            self._error = error
            raise
        self._note(batch)
        return batch

    async def whole(self) -> list[ChoiceDelta]:
        """The complete answer, by choice. Raises QuireError."""
        try:
            batch = await self.answer.whole()
        except QuireError as error:
            self._error = error
            raise
        self._note(batch)
        return batch

    def close(self) -> None:
        """Cancel what has not finished, and write metrics and trace attributes."""
        self._cancel()
        complete = len(self._timing.finish_reasons) == len(self._requests) * self.num_sequences
        if complete:
            self._observe()
        elif isinstance(self._error, Overloaded) and self._timing.num_writes:
            metrics.requests_ended_early.labels("slow_client").inc()
        elif self._error is None:
            metrics.requests_ended_early.labels("disconnect").inc()
        if self.streaming:
            metrics.stream_deltas.inc(self.answer.num_deltas)
            metrics.stream_writes.inc(self._timing.num_writes)
        if self._call.span.is_recording():
            self._describe(self._call.span)

    def _submit(self, submit: Callable[[LiveText], None], model: types_pb2.ModelDescription) -> None:
        context = self._call.trace_context()
        receivers = [
            self.answer.receiver(index * self.num_sequences, self.num_sequences)
            for index in range(len(self._requests))
        ]
        for index, (request, receiver) in enumerate(zip(self._requests, receivers, strict=True)):
            # Ours is unique for all time; the client's own id makes logs of other services searchable.
            request.request_id = f"{self.completion_id}-{index}:{self._call.request_id}"
            request.tenant = self._call.tenant
            request.tenant_policy.CopyFrom(self._call.policy)
            request.trace.CopyFrom(context)
            # Whoever goes on with it is charged to the same entry.
            request.ledger_id = uuid.uuid4().hex
            live = LiveText(request, receiver, model)
            submit(live)
            self._live.append(live)
        name = model.name
        metrics.params_n.labels(name).observe(self.num_sequences)
        if self._requests[0].sampling.HasField("max_tokens"):
            metrics.params_max_tokens.labels(name).observe(self._requests[0].sampling.max_tokens)

    def _cancel(self) -> None:
        for live in self._live:
            live.cancel()

    def _note(self, batch: Sequence[ChoiceDelta]) -> None:
        timing = self._timing
        timing.last_s = time.perf_counter()
        if not timing.num_writes:
            timing.first_s = timing.last_s
        timing.num_writes += 1
        for delta in batch:
            self.usage.note(delta)
            if delta.finish_reason:
                timing.finish_reasons[delta.index] = delta.finish_reason

    def _observe(self) -> None:
        """Metrics of a request that was answered in full: one observation each, whatever its length."""
        name = self.model.name
        prompt_tokens, completion_tokens = self.usage.prompt_tokens, self.usage.completion_tokens
        metrics.prompt_tokens.labels(name).observe(prompt_tokens)
        metrics.generation_tokens.labels(name).observe(completion_tokens)
        metrics.e2e_request_latency.labels(name).observe(self._timing.last_s - self._call.started_s)
        metrics.time_to_first_token.labels(name).observe(self._first_token_s())
        longest = self.usage.longest()
        if longest is not None and longest.completion_tokens > 1:
            metrics.time_per_output_token.labels(name).observe(
                self._decode_s(longest) / (longest.completion_tokens - 1)
            )

    def _first_token_s(self) -> float:
        """Seconds to the first token: seen here in a stream, told by the scheduler otherwise."""
        if self.streaming:
            return self._timing.first_s - self._call.started_s
        first = self.usage.longest()
        return first.queue_s + first.prefill_s if first is not None else 0.0

    def _decode_s(self, usage: types_pb2.Usage) -> float:
        return self._timing.last_s - self._timing.first_s if self.streaming else usage.decode_s

    def _describe(self, span: trace.Span) -> None:
        sampling = self._requests[0].sampling
        chat = self._requests[0].HasField("chat")
        span.set_attributes(
            {
                telemetry.OPERATION_NAME: "chat" if chat else "text_completion",
                telemetry.PROVIDER_NAME: "quire",
                telemetry.REQUEST_MODEL: self.model.name,
                telemetry.REQUEST_STREAM: self.streaming,
                telemetry.REQUEST_CHOICE_COUNT: self.num_sequences,
                telemetry.RESPONSE_ID: self.completion_id,
                telemetry.RESPONSE_MODEL: self.model.name,
                telemetry.RESPONSE_FINISH_REASONS: list(self._timing.finish_reasons.values()),
                telemetry.USAGE_INPUT_TOKENS: self.usage.prompt_tokens,
                telemetry.USAGE_OUTPUT_TOKENS: self.usage.completion_tokens,
                telemetry.USAGE_CACHED_TOKENS: self.usage.cached_tokens,
                telemetry.LATENCY_E2E: time.perf_counter() - self._call.started_s,
            }
        )
        optional = {
            telemetry.REQUEST_MAX_TOKENS: "max_tokens",
            telemetry.REQUEST_TEMPERATURE: "temperature",
            telemetry.REQUEST_TOP_P: "top_p",
        }
        for attribute, name in optional.items():
            if sampling.HasField(name):  # type: ignore[arg-type]
                span.set_attribute(attribute, getattr(sampling, name))
        if self._timing.num_writes:
            first_s = self._first_token_s()
            span.set_attribute(telemetry.RESPONSE_TIME_TO_FIRST_CHUNK, first_s)
            span.set_attribute(telemetry.LATENCY_FIRST_TOKEN, first_s)
        if self._error is not None:
            span.set_attribute(telemetry.ERROR_TYPE, type(self._error).__name__)
            span.set_status(trace.StatusCode.ERROR)
