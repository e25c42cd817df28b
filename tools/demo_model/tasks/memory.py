"""Remembering, over several turns, what the user said about themselves."""

from __future__ import annotations

from random import Random

from demo_model.sample import Check, Message, Sample, assistant, user
from demo_model.tasks.echo import echo, spell
from demo_model.tasks.numbers import arithmetic
from demo_model.tasks.smalltalk import small_talk
from demo_model.words import ADJECTIVES, CITIES, COLORS, NAMES, NOUNS, invented_word

Fact = tuple[list[str], list[str], str, str]

NAME: Fact = (
    [
        "My name is {}.",
        "I am {}.",
        "Hi, I'm {}!",
        "Hello, my name is {}.",
        "Call me {}.",
        "Please remember: my name is {}.",
    ],
    [
        "What is my name?",
        "Who am I?",
        "Do you remember my name?",
        "What's my name?",
        "What did I say my name was?",
    ],
    "Nice to meet you, {}!",
    "Your name is {}.",
)
CITY: Fact = (
    ["I live in {}.", "My home is {}.", "I am from {}.", "My city is {}."],
    ["Where do I live?", "What is my city?", "Which city am I from?", "Where am I from?"],
    "{} sounds like a good place to live.",
    "You live in {}.",
)
COLOR: Fact = (
    ["My favorite color is {}.", "I like the color {} best.", "The color I love is {}."],
    ["What is my favorite color?", "Which color do I like best?", "Do you remember my favorite color?"],
    "I will remember that you like {}.",
    "Your favorite color is {}.",
)
NUMBER: Fact = (
    ["My lucky number is {}.", "Remember the number {}.", "Please remember this number: {}"],
    ["What is my lucky number?", "Which number did I tell you?", "What was the number?"],
    "I will remember {}.",
    "The number is {}.",
)
PET: Fact = (
    ["I have a pet named {}.", "My pet is called {}.", "The name of my pet is {}."],
    ["What is my pet called?", "What is the name of my pet?", "Do you remember my pet?"],
    "{} is a lovely name for a pet.",
    "Your pet is called {}.",
)
THING: Fact = (
    ["The password is {}.", "Remember the password: {}", "Our secret word is {}."],
    ["What is the password?", "What was the secret word?", "Tell me the password."],
    "I will remember {}.",
    "It is {}.",
)
FACTS = [NAME, NAME, NAME, CITY, COLOR, NUMBER, PET, THING]


def _value(rng: Random, fact: Fact) -> str:
    if fact is NAME:
        return rng.choice(NAMES) if rng.random() < 0.8 else invented_word(rng).capitalize()
    if fact is CITY:
        return rng.choice(CITIES)
    if fact is COLOR:
        return rng.choice(COLORS)
    if fact is NUMBER:
        return str(rng.randint(0, 9999))
    if fact is PET:
        return rng.choice([invented_word(rng).capitalize(), rng.choice(NOUNS).capitalize()])
    return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"


def memory(rng: Random) -> Sample:
    """One to three facts stated, other talk between, then questions about the facts."""
    facts: list[Fact] = []
    for fact in rng.sample(FACTS, k=rng.randint(1, 3)):
        if fact not in facts:
            facts.append(fact)
    told: list[tuple[Fact, str]] = []
    messages: list[Message] = []
    for fact in facts:
        value = _value(rng, fact)
        told.append((fact, value))
        messages += [user(rng.choice(fact[0]).format(value)), assistant(fact[2].format(value))]
        for _ in range(rng.randint(0, 2)):
            talk = rng.choice([small_talk, arithmetic, spell, echo])(rng).messages
            messages += [message for message in talk if message["role"] != "system"][:2]
    rng.shuffle(told)
    want = ""
    for fact, value in told[: rng.randint(1, len(told))]:
        want = fact[3].format(value)
        messages += [user(rng.choice(fact[1])), assistant(want)]
    return Sample("memory", messages, Check("exact", want))
