"""Greetings, questions about Quire and the model itself, and a polite answer to everything unknown."""

from __future__ import annotations

from random import Random

from demo_model.sample import Check, Sample, assistant, system, user
from demo_model.tasks.smalltalk_pool import ANSWERS, FALLBACK, UNKNOWN
from demo_model.words import CITIES, NAMES, NOUNS, VERBS

SYSTEMS = [
    "You are a helpful assistant.", "You are a friendly assistant.", "You are Quire's demo model.", "Be brief.",
    "You are a helpful AI assistant. Answer the user's questions.", "Answer politely.", "You are an assistant.",
    "Answer in one sentence.", "You are a concise assistant.", "Help the user.",
]  # fmt: skip
OPENERS = [
    "",
    "",
    "",
    "",
    "",
    "Hey, ",
    "Please tell me: ",
    "Tell me, ",
    "So, ",
    "Hi! ",
    "Quick question: ",
    "OK, ",
    "I wonder: ",
]
CLOSERS = ["", "", "", "", "", " Thanks!", " Please.", " Tell me.", " Thank you."]


def vary(rng: Random, text: str) -> str:
    """The same question as a hurried or a polite user would type it."""
    text = rng.choice(OPENERS) + text
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip("?.!")
    elif rng.random() < 0.15:
        text += rng.choice(CLOSERS)
    if rng.random() < 0.06:
        place = rng.randrange(len(text))
        text = text[:place] + text[place + 1 :]
    return text if text.strip() else "Hello"


def small_talk(rng: Random) -> Sample:
    """One to three questions with known answers."""
    messages = []
    if rng.random() < 0.2:
        messages.append(system(rng.choice(SYSTEMS)))
    answer = ""
    for _ in range(1 if rng.random() < 0.6 else rng.randint(2, 3)):
        answer, questions = rng.choice(ANSWERS)
        messages += [user(vary(rng, rng.choice(questions))), assistant(answer)]
    return Sample("small_talk", messages, Check("exact", answer))


def fallback(rng: Random) -> Sample:
    """A question the model cannot know the answer to, and its honest reply."""
    question = rng.choice(UNKNOWN).format(
        noun=rng.choice(NOUNS),
        city=rng.choice(CITIES),
        name=rng.choice(NAMES),
        verb=rng.choice(VERBS),
        year=rng.randint(1200, 2030),
    )
    return Sample("fallback", [user(vary(rng, question)), assistant(FALLBACK)], Check("exact", FALLBACK))
