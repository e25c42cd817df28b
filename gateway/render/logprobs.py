"""Log-probabilities in the two shapes that the API has for them."""

from collections.abc import Iterable
from typing import Any

from quire.v1 import tokenizer_pb2

# JSON has no infinity; vLLM's stand-in for a token that cannot occur.
_LOWEST = -9999.0


def chat_logprobs(logprobs: Iterable[tokenizer_pb2.TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a chat choice."""
    content = [{**_entry(item), "top_logprobs": [_entry(rival) for rival in item.top]} for item in logprobs]
    return {"content": content, "refusal": None}


def completion_logprobs(
    logprobs: Iterable[tokenizer_pb2.TokenLogprob], first_offset: int
) -> tuple[dict[str, Any], int]:
    """`logprobs` of a plain choice, whose first token begins at character `first_offset` of the text.

    Also returns the offset of the token after the last.
    """
    tokens, values, tops, offsets = [], [], [], []
    offset = first_offset
    for item in logprobs:
        tokens.append(item.token)
        values.append(_finite(item.logprob))
        # The chosen token is always among them, likely or not.
        tops.append({rival.token: _finite(rival.logprob) for rival in (*item.top, item)})
        offsets.append(offset)
        offset += len(item.token)
    shaped = {"text_offset": offsets, "token_logprobs": values, "tokens": tokens, "top_logprobs": tops}
    return shaped, offset


def _entry(item: tokenizer_pb2.TokenLogprob) -> dict[str, Any]:
    return {"token": item.token, "logprob": _finite(item.logprob), "bytes": list(item.token_bytes)}


def _finite(value: float) -> float:
    return value if value > _LOWEST else _LOWEST
