"""Reasoning and tool calls come out the same however the answer is split, and nothing of an answer is lost."""

import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from quire.v1 import tokenizer_pb2
from tokenizer_svc.response_parser import AnswerParser, response_template
from tokenizer_svc.text_tokenizer import TextTokenizer

PROMPT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'


def parsed(tokenizer: TextTokenizer, parts: list[str]) -> tuple[str, str, list[tokenizer_pb2.ToolCallDelta]]:
    template = response_template(tokenizer)
    assert template is not None
    parser = AnswerParser(template, PROMPT, [])
    pieces = [*(parser.push(part) for part in parts), parser.flush()]
    calls = [call for piece in pieces for call in piece.tool_calls]
    return "".join(p.content for p in pieces), "".join(p.reasoning for p in pieces), calls


def test_any_split_gives_the_same(byte_level: TextTokenizer) -> None:
    answer = f"<think>It is\nabout weather.</think>Let me look.\n{CALL}\n{CALL}"

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.integers(0, len(answer)), max_size=12))
    def holds(cuts: list[int]) -> None:
        bounds = [0, *sorted(cuts), len(answer)]
        parts = [answer[start:end] for start, end in pairwise(bounds)]
        content, reasoning, calls = parsed(byte_level, parts)
        assert (content.strip(), reasoning) == ("Let me look.", "It is\nabout weather.")
        assert [(call.index, call.name, json.loads(call.arguments)) for call in calls] == [
            (0, "get_weather", {"city": "Paris"}),
            (1, "get_weather", {"city": "Paris"}),
        ]
        assert len({call.id for call in calls}) == 2

    holds()


def test_the_same_has_come_after_the_same_text_however_it_was_split(byte_level: TextTokenizer) -> None:
    """So that another parser can go on from there."""
    template = response_template(byte_level)
    assert template is not None
    answer = f"<think>It is \n about\n\nweather.</think> \n\n Let me  \nlook.\n {CALL} \n{CALL}\n so.  "

    def shown(parts: list[str]) -> tuple[str, str, int]:
        parser = AnswerParser(template, PROMPT, [])
        pieces = [parser.push(part) for part in parts]
        text = ["".join(p.content for p in pieces), "".join(p.reasoning for p in pieces)]
        return text[0], text[1], sum(len(p.tool_calls) for p in pieces)

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.integers(0, len(answer)), min_size=1, max_size=12))
    def holds(cuts: list[int]) -> None:
        bounds = [0, *sorted(cuts)]
        parts = [answer[start:end] for start, end in pairwise(bounds)]
        assert shown(parts) == shown(list(answer[: bounds[-1]]))

    holds()


def test_plain_text_is_content_and_comes_at_once(byte_level: TextTokenizer) -> None:
    template = response_template(byte_level)
    assert template is not None
    parser = AnswerParser(template, PROMPT, [])
    assert parser.push("Hello ").content.strip() == "Hello"
    assert parser.push("world").content.strip() == "world"


def test_a_tool_call_that_is_no_json_is_shown_as_the_model_wrote_it(byte_level: TextTokenizer) -> None:
    some = '[{"name": "f"}, {"name": 5}]'
    half_pair = '{"name": "f", "arguments": {"x": "\\ud83d"}}'
    for broken in ("not json", '{"name": 5}', '{"arguments": {}}', '["f"]', some, half_pair):
        content, _, calls = parsed(byte_level, ["Well: ", f"<tool_call>{broken}</tool_call>", " and on"])
        assert calls == []
        assert broken in content
        assert "Well" in content


def test_a_call_that_a_checkpoints_own_template_cannot_read_loses_nothing_before_it() -> None:
    text = {"content": "text"}
    calls = {"open": "<call>", "close": "</call>", "content": "json", "transform": {"name": "{content.name}"}}
    thinking = {"open": "<think>", "close": "</think>", **text}
    template = {"start_anchor": "[A]", "fields": {"thinking": thinking, "tool_calls": calls, "content": text}}
    answer = '<think>Hm.</think>Well: <call>{"nom": "f"}</call> and on'

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.integers(0, len(answer)), max_size=6))
    def holds(cuts: list[int]) -> None:
        parser = AnswerParser(template, "[A]", [])
        bounds = [0, *sorted(cuts), len(answer)]
        pieces = [parser.push(answer[start:end]) for start, end in pairwise(bounds)] + [parser.flush()]
        assert "".join(piece.reasoning for piece in pieces) == "Hm."
        assert "".join(piece.content for piece in pieces) == 'Well: {"nom": "f"} and on'

    holds()


def test_an_unfinished_call_loses_no_text(byte_level: TextTokenizer) -> None:
    content, _, calls = parsed(byte_level, ["So <tool_call>", '{"name": "f", "argum'])
    assert calls == []
    assert '{"name": "f", "argum' in content
