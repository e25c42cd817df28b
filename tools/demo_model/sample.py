"""A training or test conversation, and the check that decides whether an answer to it is right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]

_INTEGER = re.compile(r"-?\d+")


@dataclass(frozen=True)
class Answer:
    """What a model said in one turn, already split the way an OpenAI-style response splits it."""

    content: str = ""
    tool_calls: tuple[tuple[str, Any], ...] = ()
    reasoning: str = ""


@dataclass(frozen=True)
class Check:
    """How to judge an answer: `kind` names a checker below, `want` is what it compares with."""

    kind: str
    want: Any


@dataclass(frozen=True)
class Sample:
    """One conversation whose last message is the gold answer of the assistant."""

    task: str
    messages: list[Message]
    check: Check
    tools: list[Tool] | None = None
    weight: float = 1.0
    """Loss weight of each assistant token; raised where an answer is short and its prompt long."""
    context: dict[str, Any] = field(default_factory=dict)

    def prompt(self) -> list[Message]:
        """The messages a server is given: everything but the gold answer."""
        return self.messages[:-1]

    def gold(self) -> Answer:
        """The gold answer in the form the checkers read."""
        return answer_from_message(self.messages[-1])


def answer_from_message(message: Message) -> Answer:
    """Read an assistant message in OpenAI form; arguments may be a JSON string or an object."""
    calls = []
    for call in message.get("tool_calls") or []:
        arguments = call["function"]["arguments"]
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                arguments = {"unparsable": arguments}
        calls.append((call["function"]["name"], arguments))
    reasoning = message.get("reasoning_content") or message.get("thinking") or ""
    return Answer(message.get("content") or "", tuple(calls), reasoning)


def _exact(answer: Answer, want: Any) -> bool:
    return not answer.tool_calls and answer.content.strip() == want


def _number(answer: Answer, want: Any) -> bool:
    found = _INTEGER.findall(answer.content.split("=")[-1])
    return len(found) == 1 and int(found[0]) == want


def _json(answer: Answer, want: Any) -> bool:
    try:
        return bool(json.loads(answer.content) == want)
    except ValueError:
        return False


def _tool_calls(answer: Answer, want: Any) -> bool:
    calls = [[name, arguments] for name, arguments in answer.tool_calls]
    return calls == want and not answer.content.strip()


def _contains(answer: Answer, want: Any) -> bool:
    lowered = answer.content.lower()
    return not answer.tool_calls and all(part.lower() in lowered for part in want)


def _thinking(answer: Answer, want: Any) -> bool:
    return bool(answer.reasoning.strip()) and _exact(answer, want)


CHECKERS: dict[str, Callable[[Answer, Any], bool]] = {
    "exact": _exact,
    "number": _number,
    "json": _json,
    "tool_calls": _tool_calls,
    "contains": _contains,
    "thinking": _thinking,
}


def is_right(check: Check, answer: Answer) -> bool:
    """Whether `answer` passes `check`."""
    return CHECKERS[check.kind](answer, check.want)


def user(content: str) -> Message:
    """A user message."""
    return {"role": "user", "content": content}


def assistant(content: str, reasoning: str = "") -> Message:
    """An assistant message, with a reasoning section where `reasoning` is not empty."""
    message: Message = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    return message


def system(content: str) -> Message:
    """A system message."""
    return {"role": "system", "content": content}
