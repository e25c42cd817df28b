"""Splits a generated answer into content, reasoning and tool calls, by the checkpoint's response template.

The parsing is transformers' `ResponseParser`. Templates that tokenizers lack stand as data in
response_templates.json, chosen by what the chat template contains.
"""

import copy
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import structlog
from transformers.utils.chat_parsing import ResponseParser

from quire.v1 import tokenizer_pb2
from tokenizer_svc.text_tokenizer import TextTokenizer

log = structlog.get_logger()


@dataclass(slots=True)
class ParsedText:
    """New text of a sequence, by kind."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[tokenizer_pb2.ToolCallDelta] = field(default_factory=list)


def response_template(tokenizer: TextTokenizer) -> dict[str, Any] | None:
    """The tokenizer's own, else the first of ours whose marks its chat template contains; None if none fits."""
    own = getattr(tokenizer.pretrained, "response_template", None)
    if own:
        return _with_raw_calls(own)
    chat_template = str(tokenizer.pretrained.chat_template or "")
    table = json.loads(resources.files("tokenizer_svc").joinpath("response_templates.json").read_text())
    for entry in table:
        if all(mark in chat_template for mark in entry["when_template_contains"]):
            return _with_raw_calls(entry["response_template"])
    return None


def _with_raw_calls(template: dict[str, Any]) -> dict[str, Any]:
    """The template with JSON tool calls left as text: we read them, so that one that is no JSON is not lost."""
    copied = copy.deepcopy(dict(template))
    calls = copied.get("fields", {}).get("tool_calls", {})
    if calls.get("content") == "json" and calls.get("transform", {}).get("function") == "{content}":
        calls["content"] = "text"
        del calls["transform"]
    return copied


class AnswerParser:
    """Parses one answer as it comes. What no template explains is content: parsing never fails an answer."""

    def __init__(self, template: dict[str, Any], prompt: str, tools: list[dict[str, Any]]) -> None:
        self._num_calls = 0
        self._body = ""
        self._is_reasoning = False
        self._parser: ResponseParser | None
        try:
            self._parser = ResponseParser(template, prefix=prompt, tools=tools)
            self._take(self._parser.initial_events)
        except Exception as error:  # a template of the checkpoint's that transformers cannot use
            log.warning("the response template does not parse this chat", error=repr(error))
            self._parser = None

    @property
    def is_reasoning(self) -> bool:
        """Whether the next token is most likely inside the reasoning section."""
        return self._is_reasoning

    def push(self, text: str) -> ParsedText:
        """Split `text`; what may be part of a delimiter is held back."""
        return self._process(text, is_end=False)

    def flush(self) -> ParsedText:
        """What was held back, at the end."""
        return self._process("", is_end=True)

    def _process(self, text: str, *, is_end: bool) -> ParsedText:
        parser = self._parser
        if parser is None:
            return ParsedText(content=text)
        # Not `feed` and `finalize`: where they raise, what came before in the same text would be lost.
        events: list[dict[str, Any]] = []
        parser._buffer += text
        try:
            parser._process(events, eos=is_end)
        except Exception:  # a tool call that is not what the template says: show it as the model wrote it
            parsed = self._take(events)
            self._parser = None
            self._is_reasoning = False
            # From the region that could not be read on, all is content.
            parsed.content += self._body + parser._buffer[parser._pos :]
            return parsed
        return self._take(events)

    def _take(self, events: Iterable[dict[str, Any]]) -> ParsedText:
        parsed = ParsedText()
        for event in events:
            name, kind = event["field"], event["type"]
            if kind == "region_open":
                self._body = ""
                self._is_reasoning = name == "thinking"
            elif kind == "region_chunk":
                if name == "content":
                    parsed.content += event["text"]
                elif name == "thinking":
                    parsed.reasoning += event["text"]
                else:
                    self._body += event["text"]
            else:
                self._is_reasoning = False
                if name == "tool_calls":
                    self._add_calls(event["value"], parsed)
                self._body = ""
        return parsed

    def _add_calls(self, value: Any, parsed: ParsedText) -> None:
        try:
            calls = _calls(value)
        except (ValueError, RecursionError):
            parsed.content += self._body
            return
        for name, arguments in calls:
            parsed.tool_calls.append(
                tokenizer_pb2.ToolCallDelta(
                    index=self._num_calls,
                    id=f"call_{secrets.token_hex(12)}",
                    name=name,
                    arguments=arguments,
                )
            )
            self._num_calls += 1


def _calls(value: Any) -> list[tuple[str, str]]:
    """Name and arguments of each call. Raises ValueError or RecursionError if one is none."""
    if isinstance(value, str):
        value = [{"function": item} for item in _as_list(json.loads(value))]
    found = []
    for call in _as_list(value):
        function = call.get("function") if isinstance(call, dict) else None
        for item in _as_list(function):
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                raise ValueError("a call has no name")
            arguments = item.get("arguments", item.get("parameters", {}))
            text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            # JSON can escape halves of surrogate pairs, which have no UTF-8.
            (item["name"] + text).encode()
            found.append((item["name"], text))
    return found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
