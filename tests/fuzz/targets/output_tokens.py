"""Any token ids through detokenizer, stop strings and parser: the same text after the same tokens, however grouped."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from quire.v1 import tokenizer_pb2
from tests.fuzz.pieces import Pieces
from tests.support.tokenizers import save_byte_level, save_sentencepiece
from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.response_parser import AnswerParser, response_template
from tokenizer_svc.sequence_text import SequenceText
from tokenizer_svc.stop_strings import StopStrings
from tokenizer_svc.text_tokenizer import TextTokenizer

_PROMPT = "<|im_start|>assistant\n"


def _load() -> tuple[TextTokenizer, TextTokenizer]:
    with tempfile.TemporaryDirectory() as byte_level, tempfile.TemporaryDirectory() as sentencepiece:
        return (
            TextTokenizer(save_byte_level(Path(byte_level))),
            TextTokenizer(save_sentencepiece(Path(sentencepiece))),
        )


_TOKENIZERS = _load()
_TEMPLATE = response_template(_TOKENIZERS[0])
assert _TEMPLATE is not None


class _Case(NamedTuple):
    tokenizer: TextTokenizer
    skip: bool
    parses: bool
    include_stop: bool
    stops: list[str]
    prompt: list[int]
    groups: list[list[int]]

    @classmethod
    def of(cls, data: bytes) -> "_Case":
        """Flags, stop strings, and tokens as two bytes each, whose highest bit ends a group."""
        pieces = Pieces(data)
        flags = pieces.byte()
        tokenizer = _TOKENIZERS[flags & 1]
        stops = [text for size in (flags >> 4 & 3, flags >> 6 & 3) if (text := pieces.text(size))]
        num_prompt = pieces.byte() % 8
        rest = pieces.rest()
        prompt: list[int] = []
        groups: list[list[int]] = [[]]
        for low, high in zip(rest[::2], rest[1::2], strict=False):
            token = (low | (high & 0x7F) << 8) % (tokenizer.vocab_size + 2)  # two that nobody knows
            if len(prompt) < num_prompt:
                prompt.append(token)
                continue
            groups[-1].append(token)
            if high & 0x80:
                groups.append([])
        return cls(tokenizer, bool(flags & 2), bool(flags & 4), bool(flags & 8), stops, prompt, groups)

    def sequence(self) -> SequenceText:
        """A new sequence of this kind."""
        return SequenceText(
            0,
            Detokenizer(self.tokenizer, self.prompt, skip_special_tokens=self.skip),
            stops=StopStrings(self.stops, include=self.include_stop) if self.stops else None,
            parser=AnswerParser(_TEMPLATE, _PROMPT, []) if self.parses else None,
            opening="",
            return_token_ids=True,
            can_resume=False,
        )


class _Reader:
    """What has been shown of a sequence."""

    def __init__(self, sequence: SequenceText) -> None:
        self.sequence = sequence
        self.text = self.reasoning = ""
        self.calls: list[tuple[str, str]] = []
        self.num_tokens = 0
        self.token_ids = b""

    def push(self, token_ids: list[int]) -> None:
        """Some tokens, and what they show."""
        self.sequence.push(token_ids, [])
        self._take()

    def flush(self) -> None:
        """The end, and what it shows."""
        self.sequence.flush()
        self._take()

    def _take(self) -> None:
        delta = tokenizer_pb2.TextDelta()
        self.sequence.take(delta, 0)
        self.text += delta.text
        self.reasoning += delta.reasoning
        self.calls += [(call.name, call.arguments) for call in delta.tool_calls]
        self.num_tokens += delta.num_tokens
        self.token_ids += delta.token_ids

    def shown(self) -> tuple[object, ...]:
        """All of it."""
        stop = self.sequence.stop_string
        return self.text, self.reasoning, self.calls, self.num_tokens, self.token_ids, stop


def seeds() -> list[bytes]:
    """Words, a split character and a tool call, for each tokenizer and with each option."""
    text = 'a 👍 é<think>x</think>\n<tool_call>{"name": "f"}</tool_call><|im_end|> the end'
    found = []
    for flags in (0, 1, 2, 4, 0b0001_0110, 0b0101_1000, 0b1001_0001):
        ids = _TOKENIZERS[flags & 1].encode(text, add_special_tokens=False)
        packed = b"".join(
            (token | (index % 3 == 0) << 15).to_bytes(2, "little") for index, token in enumerate(ids)
        )
        stops = b"end"[: (flags >> 4 & 3) + (flags >> 6 & 3)]
        found.append(bytes([flags]) + stops + b"\2" + packed)
    return found


def run(data: bytes) -> None:
    """Grouped and one by one show the same; without stops and parser what a full decode shows."""
    case = _Case.of(data)
    grouped, single = _Reader(case.sequence()), _Reader(case.sequence())
    for group in case.groups:
        grouped.push(group)
        for token in group:
            single.push([token])
        assert grouped.shown() == single.shown()
    grouped.flush()
    single.flush()
    assert grouped.shown() == single.shown()
    if case.tokenizer is _TOKENIZERS[0] and not (case.stops or case.parses or case.prompt):
        whole = [token for group in case.groups for token in group]
        assert grouped.text == case.tokenizer.decode(whole, skip_special_tokens=case.skip)
