"""Plain completions as OpenAI's JSON."""

from collections.abc import Sequence
from typing import Any

import orjson

from gateway.answer import ChoiceDelta
from gateway.best_of import best_choices
from gateway.render.events import Envelope
from gateway.render.logprobs import completion_logprobs
from gateway.schemas.completions import CompletionRequest
from gateway.usage import UsageTotals


class CompletionRenderer:
    """Renders the answer to one completion request. `head` holds id, created, model and fingerprint."""

    def __init__(self, request: CompletionRequest, head: dict[str, Any], usage: UsageTotals) -> None:
        self._head = {**head, "object": "text_completion"}
        self._usage = usage
        self._logprobs = request.logprobs is not None
        self._token_ids = bool(request.return_token_ids)
        self._continuous = request.continuous_usage
        self._include_usage = request.include_usage
        self._num_computed, self._num_returned = request.num_computed, request.num_choices
        self._plain = not (self._logprobs or self._token_ids or self._continuous)
        self._envelope = Envelope(self._head, include_usage=self._include_usage)
        self._text_end = b',"logprobs":null,"finish_reason":null}]' + self._envelope.closing
        self._text_starts: dict[int, bytes] = {}
        # Characters of each choice's tokens so far.
        self._offsets: dict[int, int] = {}

    def whole(self, deltas: Sequence[ChoiceDelta]) -> bytes:
        """The body of the response."""
        if self._num_computed > self._num_returned:
            deltas = best_choices(deltas, computed=self._num_computed, returned=self._num_returned)
        choices = [self._choice(delta) for delta in deltas]
        return orjson.dumps({**self._head, "choices": choices, "usage": self._usage.to_dict()})

    def events(self, deltas: Sequence[ChoiceDelta]) -> bytes:
        """Chunks for what is new, as one write."""
        return b"".join([self._event(delta) for delta in deltas])

    def last_event(self) -> bytes:
        """The usage chunk, if it was asked for."""
        return self._envelope.usage(self._usage.to_dict()) if self._include_usage else b""

    def _event(self, delta: ChoiceDelta) -> bytes:
        if self._plain and delta.finish_reason is None:
            # The hot path: a chunk is three pieces of bytes.
            return (
                self._text_start(delta.index) + orjson.dumps(delta.text) + self._text_end
                if delta.texts
                else b""
            )
        if not (delta.texts or delta.num_tokens or delta.finish_reason):
            return b""
        return self._envelope.choice(self._choice(delta), self._usage.to_dict() if self._continuous else None)

    def _text_start(self, index: int) -> bytes:
        start = self._text_starts.get(index)
        if start is None:
            start = b'%b,"choices":[{"index":%d,"text":' % (self._envelope.opening, index)
            self._text_starts[index] = start
        return start

    def _choice(self, delta: ChoiceDelta) -> dict[str, Any]:
        logprobs = None
        if self._logprobs:
            offset = self._offsets.get(delta.index, 0)
            logprobs, self._offsets[delta.index] = completion_logprobs(delta.logprobs, offset)
        choice: dict[str, Any] = {
            "index": delta.index,
            "text": delta.text,
            "logprobs": logprobs,
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if self._token_ids:
            choice["token_ids"] = delta.token_ids
        return choice
