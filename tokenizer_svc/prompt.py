"""From a TextRequest to the tokens that the model goes on from; all that is wrong with a prompt is said here."""

from dataclasses import dataclass
from typing import Any

from quire.errors import InvalidRequest
from quire.packing import unpack_int32
from quire.v1 import tokenizer_pb2
from tokenizer_svc.chat_template import parse_tools, render
from tokenizer_svc.text_tokenizer import TextTokenizer

MAX_STOPS = 64
MAX_STOP_CHARS = 1024
# Below this a thread would cost more than it saves the event loop.
_SHORT_CHARS = 8192


@dataclass(frozen=True, slots=True)
class Prompt:
    """What was asked, in tokens; `text` as well where it began as text."""

    token_ids: list[int]
    text: str | None
    tools: list[dict[str, Any]]


def is_short(request: tokenizer_pb2.TextRequest) -> bool:
    """Whether preparing it takes well under a millisecond, so that it need not leave the event loop."""
    chat = request.chat
    size = len(request.text) + len(chat.messages_json) + len(chat.tools_json) + len(request.token_ids) // 4
    return size < _SHORT_CHARS


def check_options(request: tokenizer_pb2.TextRequest) -> None:
    """Raise InvalidRequest for options that this service reads."""
    if len(request.sampling.stop_token_ids) % 4:
        raise InvalidRequest("the bytes of stop_token_ids are not int32", param="stop_token_ids")
    if len(request.stop) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in request.stop):
        raise InvalidRequest(
            f"stop takes at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters", param="stop"
        )


def check_resumed(request: tokenizer_pb2.TextRequest, vocab_size: int) -> None:
    """Raise InvalidRequest for output so far that cannot be the request's."""
    known: set[int] = set()
    for resumed in request.resumed:
        if resumed.sequence >= max(1, request.n) or resumed.sequence in known:
            raise InvalidRequest(
                f"resumed sequence {resumed.sequence} is not one of the request's, or named twice",
                param="resumed",
            )
        known.add(resumed.sequence)
        _token_ids(resumed.token_ids, vocab_size, "resumed")
    if len(known) == max(1, request.n) and all(resumed.has_ended for resumed in request.resumed):
        raise InvalidRequest("every sequence that is resumed has ended", param="resumed")


def prepare(
    tokenizer: TextTokenizer,
    request: tokenizer_pb2.TextRequest,
    *,
    max_model_len: int,
    vocab_size: int,
    max_chars: int,
) -> Prompt:
    """Render and encode; runs in a thread for what is not short. Raises InvalidRequest."""
    kind = request.WhichOneof("prompt")
    if kind == "chat":
        text = render(tokenizer, request.chat, max_chars=max_chars)
        # The template has put special tokens where they belong.
        ids = tokenizer.encode(text, add_special_tokens=False)
        prompt = Prompt(ids, text, parse_tools(request.chat))
    elif kind == "text":
        if len(request.text) > max_chars:
            raise InvalidRequest(f"the prompt has more than {max_chars} characters", param="prompt")
        add_special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        prompt = Prompt(tokenizer.encode(request.text, add_special_tokens=add_special), request.text, [])
    elif kind == "token_ids":
        prompt = Prompt(_token_ids(request.token_ids, vocab_size, "prompt"), None, [])
    else:
        raise InvalidRequest("the request has no prompt", param="prompt")
    _check_length(len(prompt.token_ids), max_model_len)
    check_resumed(request, vocab_size)
    return prompt


def _token_ids(data: bytes, vocab_size: int, param: str) -> list[int]:
    try:
        ids = unpack_int32(data)
    except ValueError:
        raise InvalidRequest("the bytes of token_ids are not int32", param=param) from None
    if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size):
        raise InvalidRequest(f"token ids must be from 0 to {vocab_size - 1}", param=param)
    values: list[int] = ids.tolist()
    return values


def _check_length(num_tokens: int, max_model_len: int) -> None:
    if num_tokens == 0:
        raise InvalidRequest("the prompt is empty: it has no tokens", param="prompt")
    if num_tokens >= max_model_len:
        raise InvalidRequest(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt has {num_tokens} "
            "tokens, which leaves no room for an answer.",
            param="prompt",
        )
