"""How often each task is drawn, and the two length classes of training."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from demo_model.sample import Sample
from demo_model.tasks import echo, lookup, memory, numbers, smalltalk, structure, tools

Generator = Callable[[Random], Sample]

SHORT: dict[str, tuple[Generator, float]] = {
    "small_talk": (smalltalk.small_talk, 6),
    "fallback": (smalltalk.fallback, 4),
    "echo": (echo.echo, 10),
    "copy": (echo.copy, 7),
    "repeat": (echo.repeat_times, 3),
    "spell": (echo.spell, 4),
    "reverse_letters": (echo.reverse_letters, 6),
    "reverse_words": (echo.reverse_words, 4),
    "counting": (numbers.count_range, 3),
    "count_words": (numbers.count_words, 3),
    "arithmetic": (numbers.arithmetic, 10),
    "thinking": (numbers.thinking, 6),
    "retrieval": (lookup.short_retrieval, 14),
    "lists": (structure.lists, 3),
    "tables": (structure.tables, 3),
    "json": (structure.json_object, 7),
    "tool_call": (tools.tool_call, 9),
    "parallel_calls": (tools.parallel_calls, 3),
    "tool_answer": (tools.tool_answer, 5),
    "no_tool": (tools.no_tool, 3),
    "memory": (memory.memory, 6),
}
LONG_COPY_SHARE = 0.12
"""Share of long training prompts that are a passage to copy; the others are values to look up."""

_NAMES = list(SHORT)
_WEIGHTS = [weight for _, weight in SHORT.values()]


def draw(rng: Random, long_tokens: int | None) -> Sample:
    """A short sample of the mixture, or a long one of about `long_tokens` tokens."""
    if long_tokens is None:
        return SHORT[rng.choices(_NAMES, _WEIGHTS)[0]][0](rng)
    if rng.random() < LONG_COPY_SHARE:
        return echo.long_copy(rng, min(long_tokens, 2048))
    return lookup.retrieval(rng, long_tokens)
