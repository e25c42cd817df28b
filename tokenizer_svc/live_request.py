"""A request in progress: its sequences, how to submit it again, and where its deltas go."""

import time
from collections.abc import Callable, Sequence
from math import inf

from opentelemetry.trace import Span

from quire import telemetry
from quire.packing import pack_int32, unpack_float32, unpack_int32
from quire.v1 import scheduler_pb2, tokenizer_pb2, types_pb2
from tokenizer_svc.sequence_text import SequenceText
from tokenizer_svc.text_tokenizer import TextTokenizer

# Makes the delta to fill; what is filled goes out with the step's other deltas.
DeltaSink = Callable[[], tokenizer_pb2.TextDelta]

_ENDED_BY_US = types_pb2.FINISH_REASON_STOP
_LEAST_TIMEOUT_S = 0.001


class LiveRequest:
    """Turns the scheduler's entries and ends into deltas. `is_over` once nothing more will be sent."""

    def __init__(
        self,
        token_request: scheduler_pb2.TokenRequest,
        sequences: list[SequenceText],
        tokenizer: TextTokenizer,
        new_delta: DeltaSink,
        *,
        stream: bool,
        include_stop: bool,
        span: Span,
    ) -> None:
        self.token_request = token_request
        self.sequences = sequences
        self.is_over = False
        self._started = time.monotonic()
        self.lost_since: float | None = None
        """When (monotonic seconds) a scheduler lost it; None once tokens have come since."""
        self.span = span
        self._tokenizer = tokenizer
        self._new_delta = new_delta
        self._stream = stream
        self._include_stop = include_stop
        self._num_prompt_tokens = len(token_request.prompt_token_ids) // 4
        self._own_stop_ids = frozenset(unpack_int32(token_request.sampling.stop_token_ids).tolist())
        self._first_token_ns = 0

    @property
    def left_s(self) -> float:
        """Seconds until its deadline; inf: it has none."""
        if not self.token_request.HasField("timeout_s"):
            return inf
        return self.token_request.timeout_s - (time.monotonic() - self._started)

    @property
    def has_tokens(self) -> bool:
        """Whether there is output already."""
        return any(text.token_ids for text in self.sequences)

    def resume(self, resumed: tokenizer_pb2.ResumedText) -> None:
        """Take in what another tokenizer service has sent of a sequence; nothing of it is sent again."""
        text = self.sequences[resumed.sequence]
        if resumed.token_ids:
            for token in unpack_int32(resumed.token_ids).tolist():
                text.push([token], [])
            text.take(tokenizer_pb2.TextDelta(), self._num_prompt_tokens)
        text.has_ended = resumed.has_ended

    def push(self, sequence: int, token_ids: list[int], logprobs: types_pb2.Logprobs | None) -> bool:
        """New tokens of a sequence that goes on; true if they completed a stop string."""
        text = self.sequences[sequence]
        if text.has_ended or text.stop_string:
            return False
        text.push(token_ids, self._token_logprobs(token_ids, logprobs))
        self.lost_since = None
        if not self._first_token_ns:
            self._first_token_ns = time.time_ns()
        if self._stream and text.has_news:
            text.take(self._new_delta(), self._num_prompt_tokens)
        return bool(text.stop_string)

    def end(
        self, end: scheduler_pb2.SequenceEnd, token_ids: list[int], logprobs: types_pb2.Logprobs | None
    ) -> None:
        """A sequence's end with its last tokens."""
        text = self.sequences[end.sequence]
        if text.has_ended:
            return
        reason = end.finish_reason
        if not text.stop_string:
            is_stop = end.HasField("stop_token_id") and bool(token_ids) and token_ids[-1] == end.stop_token_id
            num_silent = int(is_stop and not self._include_stop)
            text.push(token_ids, self._token_logprobs(token_ids, logprobs), num_silent=num_silent)
        text.flush()
        stopped_by_string = bool(text.stop_string)
        delta = self._finish(text, _ENDED_BY_US if stopped_by_string else reason, end.usage)
        # The model's own end-of-sequence token is no news to whoever asked.
        if (
            not stopped_by_string
            and end.HasField("stop_token_id")
            and end.stop_token_id in self._own_stop_ids
        ):
            delta.stop_token_id = end.stop_token_id
        if end.HasField("error") and not stopped_by_string:
            delta.error.CopyFrom(end.error)

    def fail(self, error: types_pb2.Error) -> None:
        """End everything with one error."""
        if self.is_over:
            return
        text = next(text for text in self.sequences if not text.has_ended)
        delta = self._finish(text, types_pb2.FINISH_REASON_ERROR, types_pb2.Usage())
        delta.error.CopyFrom(error)
        for other in self.sequences:
            other.has_ended = True
        self._close()

    def end_stopped(self) -> None:
        """The scheduler is gone: sequences that wait for nothing but its ledger end with what is known here."""
        for text in self.sequences:
            if text.stop_string and not text.has_ended:
                text.flush()
                ledger = types_pb2.Usage(
                    prompt_tokens=self._num_prompt_tokens, completion_tokens=len(text.token_ids)
                )
                self._finish(text, _ENDED_BY_US, ledger)

    def resumed_request(self) -> scheduler_pb2.TokenRequest:
        """The request as it is submitted to a scheduler that does not know it: with all tokens so far."""
        request = scheduler_pb2.TokenRequest()
        request.CopyFrom(self.token_request)
        if request.HasField("timeout_s"):
            # The deadline stays where it was.
            request.timeout_s = max(self.left_s, _LEAST_TIMEOUT_S)
        del request.resumed[:]
        for text in self.sequences:
            if text.token_ids:
                request.resumed.add(sequence=text.index, token_ids=pack_int32(text.token_ids))
        return request

    def close(self) -> None:
        """The client is gone; nothing more is sent."""
        for text in self.sequences:
            text.has_ended = True
        self._close()

    def _finish(
        self, text: SequenceText, reason: types_pb2.FinishReason.ValueType, ledger: types_pb2.Usage
    ) -> tokenizer_pb2.TextDelta:
        delta = self._new_delta()
        text.take(delta, self._num_prompt_tokens)
        delta.finish_reason = reason
        delta.stop_string = text.stop_string
        delta.usage.CopyFrom(text.usage(ledger))
        text.has_ended = True
        if all(other.has_ended for other in self.sequences):
            self._close()
        return delta

    def _close(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        if telemetry.enabled():
            parent = telemetry.trace_context(self.span)
            start = self._first_token_ns or time.time_ns()
            num_tokens = sum(len(text.token_ids) for text in self.sequences)
            attributes = {telemetry.USAGE_OUTPUT_TOKENS: num_tokens}
            telemetry.start_span("detokenize", parent, start_time_ns=start, attributes=attributes).end()
            self.span.end()

    def _token_logprobs(
        self, token_ids: Sequence[int], logprobs: types_pb2.Logprobs | None
    ) -> list[tokenizer_pb2.TokenLogprob]:
        if logprobs is None:
            return []
        values = unpack_float32(logprobs.token_logprobs).tolist()
        top_ids, tops = (
            unpack_int32(logprobs.top_token_ids).tolist(),
            unpack_float32(logprobs.top_logprobs).tolist(),
        )
        num_top = len(top_ids) // max(1, len(token_ids))
        found = []
        for position, (token, value) in enumerate(zip(token_ids, values, strict=True)):
            message = self._token_logprob(token, value)
            rivals = slice(position * num_top, (position + 1) * num_top)
            for rival, rival_value in zip(top_ids[rivals], tops[rivals], strict=True):
                message.top.append(self._token_logprob(rival, rival_value))
            found.append(message)
        return found

    def _token_logprob(self, token: int, value: float) -> tokenizer_pb2.TokenLogprob:
        seen = self._tokenizer.token_text(token)
        return tokenizer_pb2.TokenLogprob(
            token_id=token, token=seen.text, token_bytes=seen.data, logprob=value
        )
