"""What a tokenizer service says of an answer, as events of a stream: a client reads the text that was said."""

import asyncio
import json
from typing import Any

from google.protobuf.message import DecodeError

from gateway.answer import Answer
from gateway.render.chat import ChatRenderer
from gateway.render.completions import CompletionRenderer
from gateway.rounds import WriteRounds
from gateway.schemas.chat import ChatRequest
from gateway.schemas.completions import CompletionRequest
from gateway.usage import UsageTotals
from quire.v1 import tokenizer_pb2, types_pb2

_LOOP = asyncio.new_event_loop()
_HEAD = {"id": "x", "created": 1, "model": "m\n", "system_fingerprint": None}
_NUM_SEQUENCES = 2
_FAILED = (types_pb2.FINISH_REASON_ERROR, types_pb2.FINISH_REASON_CANCELLED)
_MESSAGES = [{"role": "user", "content": "a"}]
_EVERYTHING = {
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "return_token_ids": True,
}


def seeds() -> list[bytes]:
    """Text with ends of lines, reasoning, a tool call, log-probabilities, and the ends of both sequences."""
    delta = tokenizer_pb2.TextDelta
    logprob = tokenizer_pb2.TokenLogprob(token_id=1, token="a", token_bytes=b"a", logprob=-0.5)
    usage = types_pb2.Usage(prompt_tokens=3, completion_tokens=4)
    call = tokenizer_pb2.ToolCallDelta(index=0, id="c", name="f", arguments="{}")
    deltas = [
        delta(
            text="a\r\n\ndata: b\u2028", num_tokens=2, token_ids=bytes(8), logprobs=[logprob], prompt_tokens=3
        ),
        delta(sequence=1, reasoning="hm\n", num_tokens=1, tool_calls=[call]),
        delta(finish_reason=types_pb2.FINISH_REASON_STOP, stop_string="\n\n", usage=usage),
        delta(sequence=1, text="z", finish_reason=types_pb2.FINISH_REASON_LENGTH, usage=usage),
    ]
    return [
        tokenizer_pb2.TokenizerSessionResponse(deltas=some).SerializeToString()
        for some in (deltas[:1], deltas[:2], deltas)
    ]


def run(data: bytes) -> None:
    """Every event is one line of JSON, and their texts are those of the deltas."""
    try:
        batch = tokenizer_pb2.TokenizerSessionResponse.FromString(data)
    except DecodeError:
        return
    _LOOP.run_until_complete(_check(list(batch.deltas)))


async def _check(deltas: list[tokenizer_pb2.TextDelta]) -> None:
    for more in ({}, _EVERYTHING):
        chat = ChatRequest.model_validate({"messages": _MESSAGES, "logprobs": bool(more), **more})
        completion = CompletionRequest.model_validate(
            {"prompt": "a", "logprobs": 1 if more else None, **more}
        )
        for make in (
            lambda usage, request=chat: ChatRenderer(request, _HEAD, usage),
            lambda usage, request=completion: CompletionRenderer(request, _HEAD, usage),
        ):
            usage = UsageTotals(_NUM_SEQUENCES)
            said, body = _streamed(deltas, make(usage), usage)
            assert _texts(body) == said


def _streamed(
    deltas: list[tokenizer_pb2.TextDelta], renderer: Any, usage: UsageTotals
) -> tuple[dict[int, str], bytes]:
    """What was said before an error or the end, and the body of it; taken after every other delta."""
    answer = Answer(WriteRounds(), max_buffered_bytes=None, keep_token_ids=True, on_failure=lambda: None)
    receiver = answer.receiver(0, _NUM_SEQUENCES)
    said: dict[int, str] = {}
    body = b""
    for number, delta in enumerate(deltas):
        if delta.sequence < _NUM_SEQUENCES and delta.finish_reason not in _FAILED:
            said[delta.sequence] = said.get(delta.sequence, "") + delta.text
        try:
            is_over = receiver.push(delta)
        except ValueError:  # token ids that are no array, after the text: the client fails the request
            is_over = True
        if number % 2:
            body += _take(answer, renderer, usage)
        if is_over:
            break
    body += _take(answer, renderer, usage)
    return {sequence: text for sequence, text in said.items() if text}, body + renderer.last_event()


def _take(answer: Answer, renderer: Any, usage: UsageTotals) -> bytes:
    new = answer._take()
    for delta in new:
        usage.note(delta)
    return renderer.events(new)  # type: ignore[no-any-return]


def _texts(body: bytes) -> dict[int, str]:
    """As a client reads an event stream: fields end with any end of line, events with an empty line."""
    texts: dict[int, str] = {}
    for event in body.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n\n"):
        if not event:
            continue
        assert event.startswith("data: ")
        assert "\n" not in event
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            text = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            texts[choice["index"]] = texts.get(choice["index"], "") + text
    return {index: text for index, text in texts.items() if text}
