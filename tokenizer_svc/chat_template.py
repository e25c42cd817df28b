"""Chats to prompt text, by the checkpoint's template, as transformers renders it: sandboxed and bounded."""

import contextlib
import json
from typing import Any

import jinja2

from quire.errors import InvalidRequest
from quire.v1 import tokenizer_pb2
from tokenizer_svc.text_tokenizer import TextTokenizer

# Deeper JSON than any tool schema, shallower than Python's recursion limit.
_MAX_DEPTH = 64
_RESERVED = frozenset(
    {
        "chat_template",
        "tokenize",
        "return_dict",
        "return_tensors",
        "conversation",
        "messages",
        "tools",
        "padding",
    }
    | {"truncation", "max_length", "add_generation_prompt", "continue_final_message", "tokenizer_kwargs"}
    | {"return_assistant_tokens_mask", "documents"}
)


def parse_tools(chat: tokenizer_pb2.ChatPrompt) -> list[dict[str, Any]]:
    """The chat's tools; none if it has none. Raises InvalidRequest."""
    tools = _parse(chat.tools_json, list, "tools") if chat.tools_json else []
    if not all(isinstance(tool, dict) for tool in tools):
        raise InvalidRequest("each tool must be an object", param="tools")
    return tools


def render(tokenizer: TextTokenizer, chat: tokenizer_pb2.ChatPrompt, *, max_chars: int) -> str:
    """The prompt text. Raises InvalidRequest for a chat that the template does not take; takes milliseconds."""
    if not tokenizer.pretrained.chat_template:
        raise InvalidRequest("the served model has no chat template: use completions", param="messages")
    messages = _messages(chat)
    kwargs = (
        _parse(chat.template_kwargs_json, dict, "chat_template_kwargs") if chat.template_kwargs_json else {}
    )
    if reserved := sorted(_RESERVED & kwargs.keys()):
        raise InvalidRequest(
            f"chat_template_kwargs cannot set {', '.join(reserved)}", param="chat_template_kwargs"
        )
    add_generation_prompt = chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True
    if chat.continue_final_message:
        add_generation_prompt = False
    try:
        text: str = tokenizer.pretrained.apply_chat_template(
            messages,
            tools=parse_tools(chat) or None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=chat.continue_final_message,
            **kwargs,
        )
    except (
        jinja2.TemplateError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        ArithmeticError,
    ) as error:
        raise InvalidRequest(f"the chat template refuses this chat: {error}", param="messages") from None
    except (RecursionError, MemoryError):
        raise InvalidRequest("the chat template cannot render this chat", param="messages") from None
    _check_unicode(text)
    if len(text) > max_chars:
        raise InvalidRequest(f"the chat renders to more than {max_chars} characters", param="messages")
    return text


def _messages(chat: tokenizer_pb2.ChatPrompt) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = _parse(chat.messages_json, list, "messages")
    if not messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest("each message must be an object with a role", param=f"messages.{index}")
        message["content"] = _content(message.get("content"), index)
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise InvalidRequest("tool_calls must be a list", param=f"messages.{index}.tool_calls")
        for call in calls:
            _open_arguments(call)
    return messages


def _content(content: object, index: int) -> str | None:
    """Templates of text models take a string; parts of type text are joined into one."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest("content must be text or a list of parts", param=f"messages.{index}.content")
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequest("content parts must be of type text", param=f"messages.{index}.content")
        texts.append(part["text"])
    return "\n".join(texts)


def _open_arguments(call: object) -> None:
    """OpenAI sends a call's arguments as JSON text, templates expect the object."""
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        # An earlier answer of the model's need not be JSON, nor can all that JSON escapes be written without.
        with contextlib.suppress(ValueError, RecursionError):
            opened = json.loads(function["arguments"])
            json.dumps(opened, ensure_ascii=False).encode()
            function["arguments"] = opened


def _check_unicode(text: str) -> None:
    """JSON can escape halves of surrogate pairs, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest("the chat has half of a surrogate pair in it", param="messages") from None


def _parse(text: str, kind: type, param: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param} is not JSON: {error}", param=param) from None
    if not isinstance(value, kind):
        raise InvalidRequest(f"{param} must be a JSON {'array' if kind is list else 'object'}", param=param)
    if _depth(value) > _MAX_DEPTH:
        raise InvalidRequest(f"{param} is nested more than {_MAX_DEPTH} levels deep", param=param)
    return value


def _depth(value: object) -> int:
    """Levels of nesting, without recursion."""
    deepest, stack = 0, [(value, 1)]
    while stack:
        item, level = stack.pop()
        deepest = max(deepest, level)
        if deepest > _MAX_DEPTH:
            return deepest
        children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        stack.extend((child, level + 1) for child in children)
    return deepest
