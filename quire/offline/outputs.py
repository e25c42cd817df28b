"""What the offline API returns."""

from dataclasses import dataclass
from typing import Self

from quire.packing import unpack_int32
from quire.v1 import tokenizer_pb2, types_pb2

_FINISH_REASONS = {
    types_pb2.FINISH_REASON_STOP: "stop",
    types_pb2.FINISH_REASON_LENGTH: "length",
    types_pb2.FINISH_REASON_CANCELLED: "cancelled",
}


@dataclass(frozen=True)
class TokenLogprob:
    """A token, the natural logarithm of its probability, and its likeliest rivals, likeliest first."""

    token_id: int
    token: str
    logprob: float
    top: tuple["TokenLogprob", ...] = ()

    @classmethod
    def of(cls, message: tokenizer_pb2.TokenLogprob) -> Self:
        """From the tokenizer service's message."""
        rivals = tuple(TokenLogprob.of(rival) for rival in message.top)
        return cls(message.token_id, message.token, message.logprob, rivals)


@dataclass(frozen=True)
class SequenceOutput:
    """One generated sequence."""

    index: int
    text: str
    token_ids: list[int]
    """All that were generated, a stop token included."""
    finish_reason: str
    """`stop`, or `length` where a limit ended it."""
    stop_reason: str | int | None
    """The stop string or the stop token of the request's own that ended it, if one did."""
    logprobs: list[TokenLogprob] | None
    """One per token, where asked for."""

    @classmethod
    def of(cls, delta: tokenizer_pb2.TextDelta, *, with_logprobs: bool) -> Self:
        """From the one delta of a sequence that is not streamed."""
        token = delta.stop_token_id if delta.HasField("stop_token_id") else None
        return cls(
            index=delta.sequence,
            text=delta.text,
            token_ids=unpack_int32(delta.token_ids).tolist(),
            finish_reason=_FINISH_REASONS[delta.finish_reason],
            stop_reason=delta.stop_string or token,
            logprobs=[TokenLogprob.of(message) for message in delta.logprobs] if with_logprobs else None,
        )


@dataclass(frozen=True)
class RequestOutput:
    """Everything that came of one prompt."""

    prompt: str | list[int] | list[dict[str, object]]
    """As it was given: text, token ids, or the messages of a chat."""
    outputs: list[SequenceOutput]
    """`n` of them."""
    num_prompt_tokens: int
    num_cached_tokens: int
    """Of the prompt's tokens, those found in the prefix cache."""

    @property
    def text(self) -> str:
        """Of the first sequence."""
        return self.outputs[0].text
