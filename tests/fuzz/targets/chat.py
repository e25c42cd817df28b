"""A chat for the tokenizer service: messages, tools and template variables as JSON, rendered and encoded."""

import json
import tempfile
from pathlib import Path
from typing import Any

from quire.errors import InvalidRequest
from quire.v1 import tokenizer_pb2
from tests.support.checkpoints import VOCAB_SIZE
from tests.support.tokenizers import save_byte_level
from tokenizer_svc.prompt import check_options, prepare
from tokenizer_svc.text_tokenizer import TextTokenizer

WORDS = (
    "messages", "tools", "kwargs", "generate", "continue", "role", "content", "tool_calls", "function", "name",
    "arguments", "type", "text", "user", "assistant", "tool", "parameters", "stop", "enable_thinking", "messages_json",
    '{"x": "\\ud800"}', "<|im_end|>", "<tool_call>",
)  # fmt: skip
_MAX_CHARS = 10_000

with tempfile.TemporaryDirectory() as _folder:
    TOKENIZER = TextTokenizer(save_byte_level(Path(_folder)))


def seeds() -> list[bytes]:
    """A plain chat, and one with everything."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": "\\u00e9"}'}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    full = [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "7"},
    ]
    documents = [
        {"messages": [{"role": "user", "content": "Hello"}]},
        {"messages": full, "tools": [tool], "kwargs": {"enable_thinking": False}, "generate": True},
        {"messages": full, "continue": True, "stop": ["a"]},
    ]
    return [json.dumps(document).encode() for document in documents]


def run(data: bytes) -> None:
    """It becomes tokens of the vocabulary, or is refused by name."""
    request = _request(data)
    try:
        check_options(request)
        prompt = prepare(TOKENIZER, request, max_model_len=2048, vocab_size=VOCAB_SIZE, max_chars=_MAX_CHARS)
    except InvalidRequest as error:
        assert error.message
        error.to_proto()  # it has to get to the client
        return
    assert all(0 <= token < VOCAB_SIZE for token in prompt.token_ids)


def _request(data: bytes) -> tokenizer_pb2.TextRequest:
    """The document's parts in a request; bytes that are no such document are its messages."""
    request = tokenizer_pb2.TextRequest()
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        request.chat.messages_json = data.decode(errors="replace")
        return request
    request.chat.messages_json = _text(document.get("messages"))
    if "tools" in document:
        request.chat.tools_json = _text(document["tools"])
    if "kwargs" in document:
        request.chat.template_kwargs_json = _text(document["kwargs"])
    if "generate" in document:
        request.chat.add_generation_prompt = bool(document["generate"])
    request.chat.continue_final_message = bool(document.get("continue"))
    stop = document.get("stop")
    if isinstance(stop, list):
        request.stop.extend(str(item).encode(errors="replace").decode() for item in stop)
    return request


def _text(value: Any) -> str:
    return json.dumps(value)
