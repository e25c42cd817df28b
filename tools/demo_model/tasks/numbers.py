"""Counting, two-digit arithmetic, and the same with a thinking section."""

from __future__ import annotations

from random import Random

from demo_model.sample import Check, Message, Sample, assistant, system, user
from demo_model.words import NOUNS, PLAIN_WORDS, any_word

ADD = [
    "What is {a} + {b}?", "{a} + {b}", "{a}+{b}=", "Add {a} and {b}.", "What is {a} plus {b}?", "Compute {a} + {b}.",
    "How much is {a} + {b}?", "{a} plus {b}", "Calculate {a}+{b}", "What is the sum of {a} and {b}?", "{a} + {b} = ?",
]  # fmt: skip
SUBTRACT = [
    "What is {a} - {b}?", "{a} - {b}", "{a}-{b}=", "Subtract {b} from {a}.", "What is {a} minus {b}?",
    "Compute {a} - {b}.", "How much is {a} - {b}?", "{a} minus {b}", "Calculate {a}-{b}",
    "What is the difference of {a} and {b}?", "{a} - {b} = ?",
]  # fmt: skip
STORY_ADD = "{n} has {a} {x}s and gets {b} more. How many {x}s does {n} have now?"
STORY_SUBTRACT = "{n} has {a} {x}s and gives away {b}. How many {x}s are left?"
THINK_SYSTEM = [
    "Think before you answer, inside <think> tags.",
    "Think step by step before you answer.",
    "Reason inside <think></think> before you answer.",
    "You are a careful assistant. Think step by step before you answer.",
    "Before answering, think inside <think> tags.",
]
COUNT_UP = [
    "Count from {a} to {b}.",
    "Count up from {a} to {b}.",
    "Please count from {a} to {b}",
    "List the numbers from {a} to {b}.",
]
COUNT_DOWN = [
    "Count down from {b} to {a}.",
    "Count backwards from {b} to {a}.",
    "Count down from {b} to {a}, please.",
]
COUNT_WORDS = [
    "How many words are in this list: {}?",
    "Count these words: {}",
    "How many words do you see? {}",
]


def _operands(rng: Random) -> tuple[int, int, str]:
    """Two numbers and a sign; mostly two digits, at times one or zero."""
    a = rng.randint(10, 99) if rng.random() < 0.85 else rng.randint(0, 9)
    b = rng.randint(10, 99) if rng.random() < 0.85 else rng.randint(0, 9)
    return a, b, rng.choice("+-")


def _question(rng: Random, a: int, b: int, sign: str) -> str:
    if rng.random() < 0.1 and (sign == "+" or a >= b):
        story = STORY_ADD if sign == "+" else STORY_SUBTRACT
        return story.format(n=rng.choice(["Ada", "Ben", "Mia", "Tom", "Zoe"]), a=a, b=b, x=rng.choice(NOUNS))
    return rng.choice(ADD if sign == "+" else SUBTRACT).format(a=a, b=b)


def _result(a: int, b: int, sign: str) -> int:
    return a + b if sign == "+" else a - b


def arithmetic(rng: Random) -> Sample:
    """Addition and subtraction of two-digit numbers, one to four questions in a conversation."""
    messages: list[Message] = []
    value = 0
    for _ in range(1 if rng.random() < 0.5 else rng.randint(2, 4)):
        a, b, sign = _operands(rng)
        value = _result(a, b, sign)
        messages += [user(_question(rng, a, b, sign)), assistant(f"{a} {sign} {b} = {value}")]
    return Sample("arithmetic", messages, Check("number", value), weight=2.0)


def _steps(a: int, b: int, sign: str) -> str:
    tens, ones = b // 10 * 10, b % 10
    half = _result(a, tens, sign)
    end = _result(a, b, sign)
    return f"I split {b} into {tens} and {ones}. {a} {sign} {tens} = {half}. {half} {sign} {ones} = {end}."


def thinking(rng: Random) -> Sample:
    """The system prompt asks for thinking: steps first inside the tags, then the bare answer."""
    messages: list[Message] = [system(rng.choice(THINK_SYSTEM))]
    roll = rng.random()
    if roll < 0.6:
        a, b, sign = _operands(rng)
        text = str(_result(a, b, sign))
        messages += [user(_question(rng, a, b, sign)), assistant(text, _steps(a, b, sign))]
    elif roll < 0.8:
        words = [rng.choice(PLAIN_WORDS) for _ in range(rng.randint(2, 9))]
        listed = ", ".join(f"{i} {word}" for i, word in enumerate(words, 1))
        text = str(len(words))
        messages += [
            user(rng.choice(COUNT_WORDS).format(" ".join(words))),
            assistant(text, f"I count them: {listed}."),
        ]
    else:
        word = any_word(rng)
        text = word[::-1]
        steps = f"The letters are {'-'.join(word)}. Backwards they are {'-'.join(text)}."
        messages += [user(f"Write {word} backwards."), assistant(text, steps)]
    return Sample("thinking", messages, Check("thinking", text), weight=1.5)


def count_range(rng: Random) -> Sample:
    """Count up or down between two numbers, at most 30 apart."""
    a = rng.randint(0, 20) if rng.random() < 0.7 else rng.randint(0, 200)
    b = a + rng.randint(2, 30)
    up = rng.random() < 0.7
    values = range(a, b + 1) if up else range(b, a - 1, -1)
    text = ", ".join(map(str, values))
    question = rng.choice(COUNT_UP if up else COUNT_DOWN).format(a=a, b=b)
    return Sample("counting", [user(question), assistant(text)], Check("exact", text), weight=0.5)


def count_words(rng: Random) -> Sample:
    """Say how many words a list of 1 to 12 holds."""
    words = [rng.choice(PLAIN_WORDS) for _ in range(rng.randint(1, 12))]
    question = rng.choice(COUNT_WORDS).format(rng.choice([" ", ", "]).join(words))
    text = str(len(words))
    return Sample("counting", [user(question), assistant(text)], Check("exact", text), weight=2.0)
