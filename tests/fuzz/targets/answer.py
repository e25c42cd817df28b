"""A model's answer as text: reasoning and tool calls come out the same however it is split."""

from types import SimpleNamespace
from typing import Any, NamedTuple

from tests.fuzz.pieces import Pieces
from tokenizer_svc.response_parser import AnswerParser, ParsedText, response_template

LIBRARIES = (
    "transformers.utils.chat_parsing.response_parser",
    "transformers.utils.chat_parsing.content_parsers",
)
_TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}}
]
_OWN = {
    "defaults": {"role": "assistant"},
    "start_anchor": "[/INST]",
    "fields": {
        "thinking": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open": "<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {
                "type": "function",
                "function": {"name": "{content.name}", "arguments": "{content.args}"},
            },
        },
        "content": {"content": "text"},
    },
}


class _Kind(NamedTuple):
    template: dict[str, Any]
    prompt: str


def _kinds() -> list[_Kind]:
    """Ours by what the chat template contains, and one of a checkpoint's own."""
    marks = ("<tool_call>", "[TOOL_CALLS]", "<think>")
    pretrained = [SimpleNamespace(chat_template=mark) for mark in marks]
    pretrained.append(SimpleNamespace(chat_template="", response_template=_OWN))
    templates = [response_template(SimpleNamespace(pretrained=item)) for item in pretrained]  # type: ignore[arg-type]
    return [_Kind(template, template["start_anchor"]) for template in templates if template is not None]


_KINDS = _kinds()


class _Shown(NamedTuple):
    content: str
    reasoning: str
    calls: list[tuple[int, str, str]]


def seeds() -> list[bytes]:
    """Answers with everything in them, for each kind of template."""
    hermes = (
        '<think>Hm.</think> Look:\n<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call> so.<|im_end|>'
    )
    mistral = '[THINK]Hm.[/THINK] Look: [TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}]</s>'
    own = '<think>Hm.</think><tool_call>{"name": "f", "args": {"x": "1"}}</tool_call>'
    several = (
        '<tool_call>[{"name": "f", "parameters": "x"}, {"name": "\\ud83d", "arguments": {}}]</tool_call> so'
    )
    answers = [(0, hermes), (1, mistral), (2, hermes), (3, own), (0, several)]
    return [bytes([kind, 3, 7]) + text.encode() for kind, text in answers]


def run(data: bytes) -> None:
    """Whole, in pieces and character by character: the same, and no failure."""
    pieces = Pieces(data)
    first = pieces.byte()
    kind = _KINDS[first % len(_KINDS)]
    sizes = [1 + pieces.byte() % 16, 1 + pieces.byte() % 64]
    text = pieces.rest().decode(errors="replace")
    prompt = kind.prompt + ("<think>\n" if first & 0x80 else "")
    parts, start = [], 0
    while start < len(text):
        parts.append(text[start : start + sizes[len(parts) % 2]])
        start += len(parts[-1])
    whole = _parsed(kind.template, prompt, [text])
    assert _parsed(kind.template, prompt, parts) == whole
    assert _parsed(kind.template, prompt, list(text)) == whole


def _parsed(template: dict[str, Any], prompt: str, parts: list[str]) -> _Shown:
    parser = AnswerParser(template, prompt, _TOOLS)
    found: list[ParsedText] = [*(parser.push(part) for part in parts), parser.flush()]
    calls = [call for piece in found for call in piece.tool_calls]
    return _Shown(
        "".join(piece.content for piece in found),
        "".join(piece.reasoning for piece in found),
        [(call.index, call.name, call.arguments) for call in calls],
    )
