"""Finding a value among many key-value lines, at any depth of a prompt of a given length."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from demo_model.sample import Check, Message, Sample, assistant, system, user
from demo_model.words import ADJECTIVES, CITIES, NAMES, NOUNS, any_word, code

ASK = [
    "What is the value of {}?", "What is {}?", "Look up {}.", "Find the value for {}.", "Give me the value of {}.",
    "Which value belongs to {}?", "What value does {} have?", "{}?", "Tell me the value of {}.", "Value of {}",
]  # fmt: skip
INTRO = [
    "Here are some records:", "Here is a list of keys and values.", "Read these lines:", "Use this data:", "Data:",
    "These are the settings:", "Remember these values:", "Below is a table of values.", "Facts:", "",
]  # fmt: skip
LINE = [
    "{k}: {v}",
    "{k} = {v}",
    "{k} -> {v}",
    "- {k}: {v}",
    "The value of {k} is {v}.",
    "{k} | {v}",
    '"{k}": "{v}",',
    "{k} is {v}.",
]

Maker = Callable[[Random], str]


def _pair(rng: Random) -> str:
    return f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"


def _plain_pair(rng: Random) -> str:
    return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


def _numbered(rng: Random) -> str:
    return (
        f"{rng.choice(['user', 'item', 'node', 'order', 'key', 'id', 'room', 'page'])}_{rng.randint(0, 9999)}"
    )


def _person(rng: Random) -> str:
    return f"{rng.choice(NAMES)} {rng.choice(NOUNS).capitalize()}"


def _dotted(rng: Random) -> str:
    return f"{rng.choice(NOUNS)}.{rng.choice(NOUNS)}.{rng.choice(NOUNS)}"


def _long_number(rng: Random) -> str:
    return str(rng.randint(0, 10 ** rng.randint(2, 7)))


def _code_key(rng: Random) -> str:
    return f"{code(rng)}{rng.randint(0, 99)}"


KEYS: list[Maker] = [_pair, _plain_pair, _numbered, _person, _dotted, _code_key]
VALUES: list[Maker] = [
    _long_number, _long_number, code, lambda rng: rng.choice(CITIES), lambda rng: rng.choice(NOUNS), _pair,
    lambda rng: f"{any_word(rng)} {any_word(rng)}",
]  # fmt: skip


def _lines(rng: Random, budget: int, cost: Callable[[str], int]) -> tuple[list[tuple[str, str]], list[str]]:
    """Distinct keys with values, and their lines, until `cost` of the lines passes `budget`."""
    make_key, make_value = rng.choice(KEYS), rng.choice(VALUES)
    line = rng.choice(LINE)
    pairs: dict[str, str] = {}
    lines: list[str] = []
    spent = 0
    while True:
        key, value = make_key(rng), make_value(rng)
        if key in pairs:
            continue
        text = line.format(k=key, v=value)
        spent += cost(text)
        if spent > budget and pairs:
            return list(pairs.items()), lines
        pairs[key] = value
        lines.append(text)


def estimate(text: str) -> int:
    """A cheap upper estimate of the tokens of a line, near enough to size training prompts."""
    digits = sum(char.isdigit() for char in text)
    return 2 + digits + (len(text) - digits) // 3


def retrieval(
    rng: Random, tokens: int, cost: Callable[[str], int] = estimate, turns: int | None = None
) -> Sample:
    """A prompt of about `tokens` tokens of key-value lines, then `turns` questions about it.

    Training asks several questions of one long prompt, because the prompt costs thousands of tokens and
    one answer teaches only a handful. Evaluation asks one, whose line may be anywhere.
    """
    turns = turns if turns is not None else rng.randint(1, 2 + tokens // 250)
    pairs, lines = _lines(rng, max(16, tokens - 48 - 34 * (turns - 1)), cost)
    body = "\n".join(lines)
    intro = rng.choice(INTRO)
    data = f"{intro}\n{body}" if intro else body
    key, value = rng.choice(pairs)
    first = rng.choice(ASK).format(key)
    messages: list[Message]
    if rng.random() < 0.25:
        messages = [system(data), user(first)]
    elif rng.random() < 0.8:
        messages = [user(f"{data}\n\n{first}")]
    else:
        messages = [user(f"{first}\n\n{data}")]
    messages.append(assistant(value))
    for _ in range(turns - 1):
        key, value = rng.choice(pairs)
        messages += [user(rng.choice(ASK).format(key)), assistant(value)]
    return Sample("retrieval", messages, Check("exact", value), weight=3.0, context={"lines": len(lines)})


def short_retrieval(rng: Random) -> Sample:
    """The same in 40 to 600 tokens: where the skill is learnt before it is stretched."""
    return retrieval(rng, rng.randint(40, 600))
