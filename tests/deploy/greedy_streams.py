"""Steady load of greedy streams, each compared token by token with the same one undisturbed."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import cycle

import openai

NUM_KINDS = 12
NUM_TOKENS = 160

# More than the front can hold, and so send again. The model never sees it.
_LONG_FIELD = "x" * 100_000


@dataclass
class Stream:
    """What came of one request."""

    kind: int
    token_ids: list[int] = field(default_factory=list)
    longest_gap_s: float = 0.0
    """Between two chunks, or before the first."""
    error: str = ""
    is_clear: bool = False
    """Whether the error says that trying again helps, as an event of the stream or with status 503."""


async def stream(client: openai.AsyncOpenAI, kind: int) -> Stream:
    """One request of this kind; what goes wrong is part of the outcome."""
    found = Stream(kind)
    last = time.monotonic()
    try:
        chunks = await client.completions.create(
            model="demo",
            prompt=f"Request {kind} asks for pages:",
            max_tokens=NUM_TOKENS,
            temperature=0,
            stream=True,
            user=_LONG_FIELD if kind % 2 else "short",
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        finish_reason = None
        async for chunk in chunks:
            now = time.monotonic()
            found.longest_gap_s, last = max(found.longest_gap_s, now - last), now
            for choice in chunk.choices:
                found.token_ids += (choice.model_extra or {}).get("token_ids") or []
                finish_reason = choice.finish_reason or finish_reason
        if finish_reason is None:
            found.error = "the stream ended without saying why"
    except openai.APIError as error:
        found.error = f"{type(error).__name__}: {error}"
        found.is_clear = "try again" in str(error)
    return found


@dataclass
class Outcome:
    """What came of all streams while one thing happened: a row of the table."""

    fault: str
    streams: list[Stream]
    lost: int = 0
    """Tokens of the undisturbed streams that are missing in streams that ended well."""
    repeated: int = 0
    """Tokens that are in a stream and not, at that place, in the undisturbed one."""

    @classmethod
    def of(cls, fault: str, streams: list[Stream], undisturbed: Sequence[Sequence[int]]) -> "Outcome":
        """Compare. A stream with an error may be short, but what it has must be right."""
        outcome = cls(fault, streams)
        for found in streams:
            right = list(undisturbed[found.kind])
            if found.error:
                right = right[: len(found.token_ids)]
            for _, start, end, other_start, other_end in SequenceMatcher(
                None, right, found.token_ids, autojunk=False
            ).get_opcodes():
                if right[start:end] != found.token_ids[other_start:other_end]:
                    outcome.lost += end - start
                    outcome.repeated += other_end - other_start
        return outcome

    @property
    def longest_gap_s(self) -> float:
        """Of any stream."""
        return max((found.longest_gap_s for found in self.streams), default=0.0)

    @property
    def errors(self) -> list[str]:
        """Errors that tell the client to try again."""
        return [found.error for found in self.streams if found.error and found.is_clear]

    @property
    def failures(self) -> list[str]:
        """Errors that nobody should see."""
        return [found.error for found in self.streams if found.error and not found.is_clear]


class SteadyLoad:
    """So many streams at once, a new one for each that ends, until `finish`."""

    def __init__(self, client: openai.AsyncOpenAI, at_once: int) -> None:
        self._client = client
        self._kinds = cycle(range(NUM_KINDS))
        self._finished: list[Stream] = []
        self._stopping = False
        self._changed = asyncio.Condition()
        self._lanes = [asyncio.create_task(self._lane()) for _ in range(at_once)]

    async def _lane(self) -> None:
        while not self._stopping:
            self._finished.append(await stream(self._client, next(self._kinds)))
            if self._finished[-1].error:
                await asyncio.sleep(0.5)  # as clients do that are told to try again
            async with self._changed:
                self._changed.notify_all()

    async def ended(self, count: int) -> None:
        """Return when so many more streams have ended."""
        goal = len(self._finished) + count
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._finished) >= goal)

    async def finish(self) -> list[Stream]:
        """Let those that run end; all of them."""
        self._stopping = True
        await asyncio.gather(*self._lanes)
        return self._finished


HEADER = (
    "| fault | streams | right | one clear error | other errors | tokens lost | tokens repeated | longest gap |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


def row(outcome: Outcome) -> str:
    """A row of the table of faults."""
    num_errors, num_failures = len(outcome.errors), len(outcome.failures)
    num_right = len(outcome.streams) - num_errors - num_failures
    return (
        f"| {outcome.fault} | {len(outcome.streams)} | {num_right} | {num_errors} | {num_failures} "
        f"| {outcome.lost} | {outcome.repeated} | {outcome.longest_gap_s:.1f} s |\n"
    )
