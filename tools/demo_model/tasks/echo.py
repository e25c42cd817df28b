"""Echo, repeat, copy, spell and reverse: answers made only of what the prompt holds."""

from __future__ import annotations

from random import Random

from demo_model.sample import Check, Sample, assistant, user
from demo_model.words import NAMES, NOUNS, PLAIN_WORDS, any_word, code, invented_word, sentence, unicode_word

ECHO = [
    "Repeat after me: {}", "Echo: {}", "Echo this: {}", "Say: {}", 'Say "{}"', 'Repeat exactly: "{}"',
    "Please repeat: {}",
    "Repeat this text: {}", "Write back what I write: {}", "echo {}", "repeat {}", "Can you repeat this? {}",
    'Please say "{}".', "Print: {}", "Return this text unchanged: {}", "Repeat the following: {}",
]  # fmt: skip
COPY = [
    "Copy this passage:\n\n{}", "Copy the following text exactly:\n{}", "Repeat this passage word for word:\n\n{}",
    "Please copy:\n{}", "Write this text again:\n\n{}", "Copy this text:\n\n{}",
    "Repeat everything below exactly as it is.\n\n{}",
]  # fmt: skip
TIMES = ["Say {!r} {} times.", "Repeat {!r} {} times.", "Write {!r} {} times."]
SPELL = [
    "Spell {}.",
    "Spell the word {}.",
    "How do you spell {}?",
    'Spell "{}".',
    "Please spell {}",
    "Can you spell {}?",
]
REVERSE_LETTERS = [
    "Reverse the word {}.", "Write {} backwards.", "Spell {} backwards.", 'Reverse "{}".', "What is {} backwards?",
    "Reverse the letters of {}.",
]  # fmt: skip
REVERSE_WORDS = [
    "Reverse the order of these words: {}", "Write these words in reverse order: {}", "Reverse this list of words: {}",
    "Say these words backwards, last word first: {}",
]  # fmt: skip
NUMBER_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def phrase(rng: Random) -> str:
    """A text of 1 to 24 pieces to echo: words, sentences, codes, numbers or non-ASCII characters."""
    kind = rng.random()
    if kind < 0.3:
        return " ".join(any_word(rng) for _ in range(rng.randint(1, 12)))
    if kind < 0.55:
        return " ".join(sentence(rng) for _ in range(rng.randint(1, 2)))
    if kind < 0.65:
        return " ".join(code(rng) for _ in range(rng.randint(1, 5)))
    if kind < 0.75:
        return " ".join(str(rng.randint(0, 10 ** rng.randint(1, 9))) for _ in range(rng.randint(1, 5)))
    if kind < 0.92:
        pieces = [
            unicode_word(rng) if rng.random() < 0.6 else any_word(rng) for _ in range(rng.randint(1, 8))
        ]
        return " ".join(pieces)
    marks = rng.choices("!#$%&*+-/=@^_~.,:;?()[]{}<>|\\", k=rng.randint(1, 6))
    return "".join(any_word(rng) + mark + rng.choice(["", " "]) for mark in marks).strip()


def echo(rng: Random) -> Sample:
    """Repeat a short text; a second request may follow in the same conversation."""
    messages = []
    for _ in range(1 if rng.random() < 0.7 else rng.randint(2, 4)):
        text = phrase(rng)
        messages += [user(rng.choice(ECHO).format(text)), assistant(text)]
    return Sample("echo", messages, Check("exact", text))


def passage(rng: Random, words: int) -> str:
    """About `words` words of prose in paragraphs, with a few codes and non-ASCII words among them."""
    parts: list[str] = []
    length = 0
    while length < words:
        piece = sentence(rng)
        if rng.random() < 0.08:
            piece += f" {unicode_word(rng)}"
        if rng.random() < 0.08:
            piece += f" {code(rng)}: {rng.randint(0, 99999)}."
        length += piece.count(" ") + 1
        parts.append(piece)
        parts.append("\n\n" if rng.random() < 0.1 else " ")
    return "".join(parts).strip()


def copy(rng: Random, words: int | None = None) -> Sample:
    """Copy a passage of 20 to 150 words, or of the length asked for."""
    text = passage(rng, words if words is not None else rng.randint(20, 150))
    return Sample(
        "copy", [user(rng.choice(COPY).format(text)), assistant(text)], Check("exact", text), weight=0.5
    )


def long_copy(rng: Random, tokens: int) -> Sample:
    """Copy a passage such that prompt and answer together come to about `tokens` tokens."""
    return copy(rng, max(20, int(tokens * 0.3)))


def repeat_times(rng: Random) -> Sample:
    """Say one word a given number of times."""
    word = any_word(rng) if rng.random() < 0.8 else unicode_word(rng)
    count = rng.randint(2, 9)
    shown = str(count) if rng.random() < 0.7 else NUMBER_WORDS[count]
    question = rng.choice(TIMES).replace("{!r}", f'"{word}"').replace("{}", shown)
    text = " ".join([word] * count)
    return Sample("repeat", [user(question), assistant(text)], Check("exact", text))


def _letters_word(rng: Random) -> str:
    roll = rng.random()
    if roll < 0.6:
        return rng.choice(PLAIN_WORDS)
    if roll < 0.8:
        return rng.choice(NAMES)
    return invented_word(rng)


def spell(rng: Random) -> Sample:
    """Spell a word letter by letter, joined with hyphens."""
    word = _letters_word(rng)
    text = "-".join(word)
    return Sample("spell", [user(rng.choice(SPELL).format(word)), assistant(text)], Check("exact", text))


def reverse_letters(rng: Random) -> Sample:
    """Write a word backwards."""
    word = _letters_word(rng)
    text = word[::-1]
    question = rng.choice(REVERSE_LETTERS).format(word)
    return Sample("reverse_letters", [user(question), assistant(text)], Check("exact", text))


def reverse_words(rng: Random) -> Sample:
    """Write 2 to 10 words in reverse order."""
    pool = PLAIN_WORDS if rng.random() < 0.5 else NOUNS
    words = [rng.choice(pool) if rng.random() < 0.9 else any_word(rng) for _ in range(rng.randint(2, 10))]
    joiner = rng.choice([" ", ", "])
    question = rng.choice(REVERSE_WORDS).format(joiner.join(words))
    text = joiner.join(reversed(words))
    return Sample("reverse_words", [user(question), assistant(text)], Check("exact", text))
