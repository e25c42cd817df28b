"""Choosing one of the given tools, filling in its arguments, and answering from its result."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from demo_model.sample import Check, Message, Sample, Tool, assistant, system, user
from demo_model.tasks.numbers import arithmetic
from demo_model.tasks.smalltalk import SYSTEMS, small_talk
from demo_model.tasks.tool_pool import ARGUMENT_VALUES, RESULT_VALUES, TOOLS, ToolSpec
from demo_model.words import ADJECTIVES, NOUNS, any_word

_VERBS = ["get", "set", "find", "update", "check", "list", "open", "close", "load", "delete"]
_KINDS = ["string", "integer", "boolean"]


def schema(name: str, description: str, arguments: dict[str, tuple[str, str]]) -> Tool:
    """A tool in the OpenAI form."""
    properties = {key: {"type": kind, "description": text} for key, (kind, text) in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def _invented(rng: Random) -> tuple[ToolSpec, dict[str, Any]]:
    """A tool no list holds, and arguments for it: what the model must do with tools it has never met."""
    noun = rng.choice(NOUNS)
    verb = rng.choice(_VERBS)
    name = f"{verb}_{noun}" if rng.random() < 0.7 else f"{verb}_{rng.choice(ADJECTIVES)}_{noun}"
    keys = rng.sample(NOUNS, k=rng.randint(1, 3))
    arguments, values = {}, {}
    for key in keys:
        kind = rng.choice(_KINDS)
        arguments[key] = (kind, f"The {key}")
        values[key] = {
            "string": any_word(rng),
            "integer": rng.randint(0, 9999),
            "boolean": rng.random() < 0.5,
        }[kind]
    given = rng.choice([", ", " and "]).join(f"{key} {{{key}}}" for key in keys)
    words = name.replace("_", " ")
    requests = [
        f"Call {name} with {given}.",
        f"Please {words} with {given}.",
        f"Use {name}: {given}",
        f"{words.capitalize()}, {given}.",
    ]
    return (
        name,
        f"{verb.capitalize()} the {noun}.",
        arguments,
        requests,
        ["status"],
        f"{name} answered: {{status}}.",
    ), values


def _pick(rng: Random) -> tuple[ToolSpec, dict[str, Any]]:
    if rng.random() < 0.3:
        return _invented(rng)
    spec = rng.choice(TOOLS)
    return spec, {key: ARGUMENT_VALUES[key](rng) for key in spec[2]}


def _offered(rng: Random, wanted: ToolSpec) -> list[Tool]:
    """The wanted tool among up to three others, in random order."""
    specs = {wanted[0]: wanted}
    for _ in range(rng.randint(0, 3)):
        other = _pick(rng)[0]
        specs.setdefault(other[0], other)
    order = list(specs.values())
    rng.shuffle(order)
    return [schema(*spec[:3]) for spec in order]


def _spoken(values: dict[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def _call(number: int, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"call_{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _result(rng: Random, spec: ToolSpec, values: dict[str, Any]) -> tuple[str, str]:
    """What the tool returns, as JSON text, and the reply that reads it out."""
    result = {key: RESULT_VALUES[key](rng) for key in spec[4]}
    return json.dumps(result, ensure_ascii=False), spec[5].format(**_spoken({**values, **result}))


def _opening(rng: Random) -> list[Message]:
    messages: list[Message] = []
    if rng.random() < 0.2:
        messages.append(system(rng.choice(SYSTEMS)))
    if rng.random() < 0.15:
        messages += [message for message in small_talk(rng).messages if message["role"] != "system"][:2]
    return messages


def tool_call(rng: Random) -> Sample:
    """A request that one of the tools serves: the answer is the call."""
    spec, values = _pick(rng)
    messages = [*_opening(rng), user(rng.choice(spec[3]).format(**_spoken(values)))]
    calls = [_call(0, spec[0], values)]
    want = [[spec[0], values]]
    messages.append({"role": "assistant", "content": "", "tool_calls": calls})
    return Sample("tool_call", messages, Check("tool_calls", want), _offered(rng, spec), weight=1.5)


def parallel_calls(rng: Random) -> Sample:
    """One request for two things: two calls of the same tool in one turn."""
    spec = rng.choice([spec for spec in TOOLS if list(spec[2]) in (["city"], ["item"])])
    key = next(iter(spec[2]))
    first, second = ARGUMENT_VALUES[key](rng), ARGUMENT_VALUES[key](rng)
    question = rng.choice(spec[3]).format(**{key: f"{first} and {second}"})
    want = [[spec[0], {key: first}], [spec[0], {key: second}]]
    calls = [_call(number, name, arguments) for number, (name, arguments) in enumerate(want)]
    messages = [*_opening(rng), user(question), {"role": "assistant", "content": "", "tool_calls": calls}]
    return Sample("parallel_calls", messages, Check("tool_calls", want), _offered(rng, spec), weight=1.5)


def tool_answer(rng: Random) -> Sample:
    """The call, its result, and the answer that reads the result out; at times one more request follows."""
    messages = _opening(rng)
    spec, values = _pick(rng)
    tools = _offered(rng, spec)
    want = ""
    for number in range(1 if rng.random() < 0.8 else 2):
        if number:
            values = {key: _again(rng, key, value) for key, value in values.items()}
        result, want = _result(rng, spec, values)
        call = _call(number, spec[0], values)
        messages += [
            user(rng.choice(spec[3]).format(**_spoken(values))),
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": result},
            assistant(want),
        ]
    return Sample("tool_answer", messages, Check("exact", want), tools)


def _again(rng: Random, key: str, value: Any) -> Any:
    """Another value for the same argument: a listed one, or one of the same type for an invented tool."""
    if isinstance(value, bool):
        return rng.random() < 0.5
    if isinstance(value, int):
        return rng.randint(0, 999)
    return ARGUMENT_VALUES[key](rng) if key in ARGUMENT_VALUES and key != "name" else any_word(rng)


def no_tool(rng: Random) -> Sample:
    """Tools are offered, but the question needs none."""
    spec, _ = _pick(rng)
    base = rng.choice([small_talk, small_talk, arithmetic])(rng)
    tools = [tool for tool in _offered(rng, spec) if tool["function"]["name"] != "add"]
    return Sample("no_tool", base.messages, base.check, tools or None)
