"""Chats as text: the chat template's rendering in plain Python, many times faster than Jinja.

Training renders some ten million conversations; `tests/tools/test_demo_data.py` holds this function and
`chat_template.jinja` to the same output.
"""

from __future__ import annotations

import json
from pathlib import Path

from demo_model.sample import Message, Tool

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
CONTROL_TOKENS = [PAD, START, END]
"""Never part of what a user may see; decoding with `skip_special_tokens` drops them."""
MARKUP_TOKENS = [THINK, END_THINK, CALL, END_CALL]
"""Single tokens that stay in decoded text, because a server parses them out of it."""

TEMPLATE_PATH = Path(__file__).with_name("chat_template.jinja")
ASSISTANT_OPENING = f"{START}assistant\n"

RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": ASSISTANT_OPENING,
    "fields": {
        "thinking": {"open": THINK, "close": END_THINK, "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": END_CALL,
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)", "content": "text"},
    },
}
"""How transformers' `parse_response` splits an answer into thinking, tool calls and content."""


def _assistant_text(message: Message, show_reasoning: bool) -> str:
    text = ""
    if show_reasoning and message.get("reasoning_content"):
        text = f"{THINK}\n{message['reasoning_content']}\n{END_THINK}\n\n"
    text += message["content"]
    for number, call in enumerate(message.get("tool_calls") or []):
        function = call["function"]
        separator = "\n" if message["content"] or number else ""
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        text += f'{separator}{CALL}\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n{END_CALL}'
    return text


def render(
    messages: list[Message], tools: list[Tool] | None = None, add_generation_prompt: bool = False
) -> str:
    """The text of a conversation, equal to what `chat_template.jinja` makes of it."""
    last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
    parts: list[str] = []
    if tools:
        leading = messages[0]["role"] == "system"
        parts.append(f"{START}system")
        if leading:
            parts.append("\n" + messages[0]["content"])
        parts.append("\nTools:")
        parts += ["\n" + json.dumps(tool, ensure_ascii=False) for tool in tools]
        parts.append(f"{END}\n")
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            parts.append(f"{ASSISTANT_OPENING}{_assistant_text(message, index > last_user)}{END}\n")
        elif not (tools and index == 0 and message["role"] == "system"):
            parts.append(f"{START}{message['role']}\n{message['content']}{END}\n")
    if add_generation_prompt:
        parts.append(ASSISTANT_OPENING)
    return "".join(parts)
