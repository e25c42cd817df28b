"""Chats render as transformers renders them; what a template cannot take is one clear error."""

import json
from typing import Any

import pytest

from quire.errors import InvalidRequest
from quire.v1 import tokenizer_pb2
from tokenizer_svc.chat_template import render
from tokenizer_svc.text_tokenizer import TextTokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Héllo 😀"},
    {"role": "assistant", "content": "Hi"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


def chat(messages: Any = CHAT, **fields: Any) -> tokenizer_pb2.ChatPrompt:
    text = messages if isinstance(messages, str) else json.dumps(messages)
    return tokenizer_pb2.ChatPrompt(messages_json=text, **fields)


def rendered(tokenizer: TextTokenizer, prompt: tokenizer_pb2.ChatPrompt) -> str:
    return render(tokenizer, prompt, max_chars=10_000)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, {"add_generation_prompt": True}),
        ({"add_generation_prompt": False}, {"add_generation_prompt": False}),
        ({"continue_final_message": True}, {"continue_final_message": True}),
        ({"tools_json": json.dumps(TOOLS)}, {"tools": TOOLS, "add_generation_prompt": True}),
    ],
)
def test_the_prompt_is_transformers_own(
    byte_level: TextTokenizer, fields: dict[str, Any], wanted: dict[str, Any]
) -> None:
    expected = byte_level.pretrained.apply_chat_template(CHAT, tokenize=False, **wanted)
    assert rendered(byte_level, chat(**fields)) == expected


def test_parts_of_type_text_and_arguments_as_json_text_are_what_templates_expect(
    byte_level: TextTokenizer,
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    text = rendered(byte_level, chat(messages))
    assert "a\nb" in text
    assert '"arguments": {"x": 1}' in text


def test_arguments_that_cannot_be_written_without_escapes_stay_text(byte_level: TextTokenizer) -> None:
    call = {"function": {"name": "f", "arguments": '{"x": "\\ud83d"}'}}
    text = rendered(byte_level, chat([{"role": "assistant", "content": None, "tool_calls": [call]}]))
    assert "ud83d" in text
    assert byte_level.encode(text, add_special_tokens=False)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        (chat("{"), "messages"),
        (chat("{}"), "messages"),
        (chat("[]"), "messages"),
        (chat("[1]"), "messages.0"),
        (chat([{"content": "x"}]), "messages.0"),
        (chat([{"role": "user", "content": 5}]), "messages.0.content"),
        (chat([{"role": "user", "content": [{"type": "image_url"}]}]), "messages.0.content"),
        (chat([{"role": "user", "content": "a", "tool_calls": 5}]), "messages.0.tool_calls"),
        (chat([{"role": "user", "content": "\ud800"}]), "messages"),
        (chat("[" * 2000 + "]" * 2000), "messages"),
        (chat(tools_json="{}"), "tools"),
        (chat(tools_json="[1]"), "tools"),
        (chat(template_kwargs_json='{"messages": []}'), "chat_template_kwargs"),
        (chat([{"role": "user", "content": "x" * 20_000}]), "messages"),
    ],
)
def test_a_malformed_chat_names_its_part(
    byte_level: TextTokenizer, prompt: tokenizer_pb2.ChatPrompt, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        rendered(byte_level, prompt)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system messages') }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages[0].nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_hostile_or_broken_template_costs_its_request(
    byte_level: TextTokenizer, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(byte_level.pretrained, "chat_template", template)
    with pytest.raises(InvalidRequest):
        rendered(byte_level, chat())


def test_no_template_is_said_so(byte_level: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_level.pretrained, "chat_template", None)
    with pytest.raises(InvalidRequest, match="no chat template"):
        rendered(byte_level, chat())
