"""One sequence of a request: tokens in, text out, through detokenizer, stop strings and response parser."""

from collections.abc import Sequence

from quire.packing import pack_int32
from quire.v1 import tokenizer_pb2, types_pb2
from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.response_parser import AnswerParser, ParsedText
from tokenizer_svc.stop_strings import StopStrings


class SequenceText:
    """Collects what is new since the last delta. `has_ended`: its last delta has been taken.

    With `return_token_ids` tokens are news by themselves; with `can_resume` they only go along with their text.
    """

    def __init__(
        self,
        index: int,
        detokenizer: Detokenizer,
        *,
        stops: StopStrings | None,
        parser: AnswerParser | None,
        opening: str,
        return_token_ids: bool,
        can_resume: bool,
    ) -> None:
        self.index = index
        self.token_ids: list[int] = []
        """All output so far, for resubmission."""
        self.has_ended = False
        self.num_reasoning_tokens = 0
        self._detokenizer = detokenizer
        self._stops = stops
        self._parser = parser
        self._return_token_ids = return_token_ids
        self._tells_token_ids = return_token_ids or can_resume
        self._new = ParsedText(content=opening)
        self._num_new_tokens = 0
        self._new_logprobs: list[tokenizer_pb2.TokenLogprob] = []
        self._told_prompt = False

    @property
    def stop_string(self) -> str:
        """The stop string that was found; empty until then."""
        return self._stops.found if self._stops is not None else ""

    @property
    def has_news(self) -> bool:
        """Whether a delta would show anything."""
        new = self._new
        return bool(
            new.content or new.reasoning or new.tool_calls or self._new_logprobs or not self._told_prompt
        ) or (self._return_token_ids and self._num_new_tokens > 0)

    def push(
        self, token_ids: list[int], logprobs: Sequence[tokenizer_pb2.TokenLogprob], *, num_silent: int = 0
    ) -> None:
        """Take in tokens; the last `num_silent` (a stop token) count, and have no text."""
        if self._stops is None:
            self._count(token_ids, logprobs)
            shown = token_ids[: len(token_ids) - num_silent]
            if shown:
                self._add(self._detokenizer.push(shown))
            return
        for position, token in enumerate(token_ids):
            if self._stops.found:
                return  # the model ran on for a step or two; nobody asked for that
            self._count([token], logprobs[position : position + 1])
            if position < len(token_ids) - num_silent:
                self._add(self._stops.push(self._detokenizer.push([token])))

    def flush(self) -> None:
        """The end: show what was held back."""
        rest = self._detokenizer.flush()
        if self._stops is not None:
            rest = self._stops.push(rest)
            rest += "" if self._stops.found else self._stops.flush()
        self._add(rest)
        if self._parser is not None:
            self._merge(self._parser.flush())

    def take(self, delta: tokenizer_pb2.TextDelta, num_prompt_tokens: int) -> None:
        """Move what is new into `delta`."""
        new = self._new
        delta.sequence = self.index
        delta.text = new.content
        delta.num_tokens = self._num_new_tokens
        if new.reasoning:
            delta.reasoning = new.reasoning
        if new.tool_calls:
            delta.tool_calls.extend(new.tool_calls)
        if self._new_logprobs:
            delta.logprobs.extend(self._new_logprobs)
            self._new_logprobs = []
        if self._tells_token_ids and self._num_new_tokens:
            delta.token_ids = pack_int32(self.token_ids[-self._num_new_tokens :])
        if not self._told_prompt:
            delta.prompt_tokens = num_prompt_tokens
            self._told_prompt = True
        self._new = ParsedText()
        self._num_new_tokens = 0

    def usage(self, ledger: types_pb2.Usage) -> types_pb2.Usage:
        """The scheduler's ledger, with what only this service knows."""
        usage = types_pb2.Usage()
        usage.CopyFrom(ledger)
        usage.reasoning_tokens = self.num_reasoning_tokens
        if self.stop_string:
            usage.completion_tokens = len(self.token_ids)
        return usage

    def _count(self, token_ids: list[int], logprobs: Sequence[tokenizer_pb2.TokenLogprob]) -> None:
        self.token_ids += token_ids
        self._num_new_tokens += len(token_ids)
        self._new_logprobs += logprobs
        if self._parser is not None and self._parser.is_reasoning:
            self.num_reasoning_tokens += len(token_ids)

    def _add(self, text: str) -> None:
        if not text:
            return
        if self._parser is None:
            self._new.content += text
        else:
            self._merge(self._parser.push(text))

    def _merge(self, parsed: ParsedText) -> None:
        self._new.content += parsed.content
        self._new.reasoning += parsed.reasoning
        self._new.tool_calls += parsed.tool_calls
