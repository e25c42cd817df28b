"""Requests of every kind to the demo model, greedy, so that each has one right answer whatever else happens."""

import asyncio
import random
from typing import Any, NamedTuple

import openai

WORDS = (
    "apple", "river", "stone", "candle", "window", "garden", "button", "silver", "meadow", "lantern", "basket",
    "feather",
)  # fmt: skip


class Kind(NamedTuple):
    """What is asked; requests of one kind have one answer."""

    is_chat: bool
    fields: dict[str, Any]

    @property
    def num_sequences(self) -> int:
        """Its choices."""
        return int(self.fields.get("n", 1))


class Asked(NamedTuple):
    """One request."""

    kind: int
    stream: bool
    cancel: bool
    """Whether the client leaves after a few chunks."""


def kinds() -> list[Kind]:
    """Chats and completions, short and long, n of 1 to 3, stops and limits; two long prefixes that many share."""
    rng = random.Random(7)
    table = "\n".join(f"{word}-{i}: {rng.randint(100, 999)}" for i in range(8) for word in WORDS)
    lookups = [f"{table}\n\nWhat is the value of {rng.choice(WORDS)}-{i}?" for i in range(8)]
    passage = " ".join(rng.choice(WORDS) for _ in range(150))
    chats = [
        "What is Quire?",
        *(f"Spell the word {word}." for word in WORDS[:4]),
        *(f"What is {rng.randint(10, 99)} + {rng.randint(10, 99)}?" for _ in range(4)),
        *(f"Repeat after me: {' '.join(rng.sample(WORDS, 6))}" for _ in range(4)),
        *lookups,
    ]
    found = [
        Kind(True, {"messages": [{"role": "user", "content": text}], "max_tokens": 48, "n": 1 + number % 3})
        for number, text in enumerate(chats)
    ]
    found += [
        Kind(False, {"prompt": f"{passage} {word}", "max_tokens": 40 + number, "n": 1 + number % 2})
        for number, word in enumerate(WORDS)
    ]
    # Sequences that go on to their limit keep rows and blocks busy.
    for kind in found[::5]:
        kind.fields["extra_body"] = {"ignore_eos": True}
        kind.fields["max_tokens"] = 120
    found += [
        Kind(False, {"prompt": f"Count: 1, 2, {number},", "max_tokens": 60, "stop": [" 1"]})
        for number in range(3)
    ]
    return found


def draw(count: int, num_kinds: int) -> list[Asked]:
    """The same mix at each call."""
    rng = random.Random(11)
    return [Asked(rng.randrange(num_kinds), rng.random() < 0.6, rng.random() < 0.08) for _ in range(count)]


async def answer(client: openai.AsyncOpenAI, kind: Kind, asked: Asked) -> list[str] | None:
    """The text of each choice, or None if the client left. Raises openai.APIError."""
    create: Any = client.chat.completions.create if kind.is_chat else client.completions.create
    fields = {"model": "demo", "temperature": 0.0, **kind.fields}
    if not asked.stream and not asked.cancel:
        completion = await create(**fields)
        choices = sorted(completion.choices, key=lambda choice: choice.index)
        assert all(choice.finish_reason in ("stop", "length") for choice in choices)
        return [(choice.message.content or "") if kind.is_chat else choice.text for choice in choices]
    texts = [""] * kind.num_sequences
    finished: set[int] = set()
    chunks = await create(**fields, stream=True)
    num_chunks = 0
    async for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += (choice.delta.content or "") if kind.is_chat else choice.text
            if choice.finish_reason is not None:
                assert choice.finish_reason in ("stop", "length")
                finished.add(choice.index)
        num_chunks += 1
        if asked.cancel and num_chunks == 3:
            await chunks.close()
            return None
    assert len(finished) == len(texts), "the stream ended without saying why"
    return texts


class Progress:
    """Counts requests that are over; others wait for a number of them."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = asyncio.Condition()

    async def note(self) -> None:
        """One more is over."""
        async with self._changed:
            self.count += 1
            self._changed.notify_all()

    async def reach(self, count: int) -> None:
        """Return when so many are over."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.count >= count)
