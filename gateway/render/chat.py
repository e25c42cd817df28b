"""Chat completions as OpenAI's JSON."""

from collections.abc import Sequence
from typing import Any

import orjson

from gateway.answer import ChoiceDelta
from gateway.render.events import Envelope
from gateway.render.logprobs import chat_logprobs
from gateway.schemas.chat import ChatRequest
from gateway.usage import UsageTotals


class ChatRenderer:
    """Renders the answer to one chat request. `head` holds id, created, model and fingerprint."""

    def __init__(self, request: ChatRequest, head: dict[str, Any], usage: UsageTotals) -> None:
        self._head = head
        self._usage = usage
        self._logprobs = bool(request.logprobs)
        self._token_ids = bool(request.return_token_ids)
        self._single_call = request.parallel_tool_calls is False
        self._continuous = request.continuous_usage
        self._include_usage = request.include_usage
        # Every choice's chunk of plain text is this with the index and the text put in.
        self._plain = not (self._logprobs or self._token_ids or self._continuous)
        self._envelope = Envelope(
            {**head, "object": "chat.completion.chunk"}, include_usage=self._include_usage
        )
        self._text_end = b'},"logprobs":null,"finish_reason":null}]' + self._envelope.closing
        self._text_starts: dict[int, bytes] = {}

    def whole(self, deltas: Sequence[ChoiceDelta]) -> bytes:
        """The body of the response."""
        body = {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(delta) for delta in deltas],
            "usage": self._usage.to_dict(),
        }
        return orjson.dumps(body)

    def events(self, deltas: Sequence[ChoiceDelta]) -> bytes:
        """Chunks for what is new, as one write."""
        return b"".join([self._event(delta) for delta in deltas])

    def last_event(self) -> bytes:
        """The usage chunk, if it was asked for."""
        return self._envelope.usage(self._usage.to_dict()) if self._include_usage else b""

    def _event(self, delta: ChoiceDelta) -> bytes:
        start = self._text_starts.get(delta.index)
        if start is None:
            return self._first_event(delta)
        if self._plain and delta.finish_reason is None and not delta.reasonings and not delta.tool_calls:
            # The hot path: a chunk is three pieces of bytes.
            return start + orjson.dumps(delta.text) + self._text_end if delta.texts else b""
        return self._full_event(delta)

    def _first_event(self, delta: ChoiceDelta) -> bytes:
        """As OpenAI, begin each choice with a chunk that has the role and no text."""
        opening = self._envelope.opening
        self._text_starts[delta.index] = b'%b,"choices":[{"index":%d,"delta":{"content":' % (
            opening,
            delta.index,
        )
        role = {"role": "assistant", "content": ""}
        usage = self._usage.to_dict() if self._continuous else None
        first = self._envelope.choice(
            {"index": delta.index, "delta": role, "logprobs": None, "finish_reason": None}, usage
        )
        return first + self._event(delta)

    def _full_event(self, delta: ChoiceDelta) -> bytes:
        fields: dict[str, Any] = {}
        if delta.reasonings:
            # Clients read one name or the other.
            fields["reasoning_content"] = fields["reasoning"] = delta.reasoning
        if delta.texts:
            fields["content"] = delta.text
        calls = self._tool_calls(delta, streaming=True)
        if calls:
            fields["tool_calls"] = calls
        if not (fields or delta.num_tokens or delta.finish_reason):
            return b""
        choice: dict[str, Any] = {
            "index": delta.index,
            "delta": fields,
            "logprobs": chat_logprobs(delta.logprobs) if delta.logprobs else None,
            "finish_reason": delta.finish_reason,
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        if self._token_ids:
            choice["token_ids"] = delta.token_ids
        return self._envelope.choice(choice, self._usage.to_dict() if self._continuous else None)

    def _choice(self, delta: ChoiceDelta) -> dict[str, Any]:
        calls = self._tool_calls(delta, streaming=False)
        message: dict[str, Any] = {"role": "assistant", "content": delta.text, "refusal": None}
        if calls:
            message["tool_calls"] = calls
            message["content"] = delta.text or None
        if delta.reasonings:
            message["reasoning_content"] = message["reasoning"] = delta.reasoning
        choice: dict[str, Any] = {
            "index": delta.index,
            "message": message,
            "logprobs": chat_logprobs(delta.logprobs) if self._logprobs else None,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._token_ids:
            choice["token_ids"] = delta.token_ids
        return choice

    def _tool_calls(self, delta: ChoiceDelta, *, streaming: bool) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []
        for index, call in sorted(delta.tool_calls.items()):
            if self._single_call and index > 0:
                continue
            function = {"name": call.name, "arguments": call.arguments}
            if not streaming:
                calls.append({"id": call.id, "type": "function", "function": function})
            elif call.id or call.name:
                calls.append({"index": index, "id": call.id, "type": "function", "function": function})
            else:
                calls.append({"index": index, "function": {"arguments": call.arguments}})
        return calls
