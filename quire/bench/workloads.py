"""Offline workloads: lists of prompts in token ids with the number of tokens to generate. Every run sees the same."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from quire.errors import InvalidRequest

# Below the vocabulary of every model that is compared; the first ids are often special.
_VOCAB_SIZE = 100_000
_FIRST_TOKEN = 10

Prompt = list[int]


@dataclass(frozen=True)
class Item:
    """One request."""

    prompt: Prompt
    output_len: int


@dataclass(frozen=True)
class Workload:
    """Requests that are submitted together."""

    name: str
    items: list[Item]

    @property
    def prompt_tokens(self) -> int:
        """Of all requests."""
        return sum(len(item.prompt) for item in self.items)

    @property
    def output_tokens(self) -> int:
        """Of all requests."""
        return sum(item.output_len for item in self.items)

    @property
    def max_total_len(self) -> int:
        """Tokens of the longest request, output included."""
        return max(len(item.prompt) + item.output_len for item in self.items)

    def within(self, vocab_size: int) -> "Workload":
        """The same lengths in a vocabulary that may be smaller."""
        if vocab_size >= _VOCAB_SIZE:
            return self
        first = min(_FIRST_TOKEN, vocab_size - 1)
        span = vocab_size - first
        items = [
            Item([first + token % span for token in item.prompt], item.output_len) for item in self.items
        ]
        return Workload(self.name, items)


def uniform(count: int, low: int, high: int, seed: int) -> list[Item]:
    """Prompt and output lengths both uniform in [low, high]."""
    source = random.Random(seed)
    return [_item(source, source.randint(low, high), lambda: source.randint(low, high)) for _ in range(count)]


def fixed(count: int, prompt_len: int, output_len: int, seed: int = 1) -> list[Item]:
    """All of one size."""
    source = random.Random(seed)
    return [_item(source, prompt_len, lambda: output_len) for _ in range(count)]


def shared_prefix(count: int, prefix_len: int, tail_len: int, output_len: int, seed: int) -> list[Item]:
    """One long beginning that all prompts share, and a short end of each's own."""
    source = random.Random(seed)
    prefix = _tokens(source, prefix_len)
    return [Item(prefix + _tokens(source, tail_len), output_len) for _ in range(count)]


def _tokens(source: random.Random, count: int) -> Prompt:
    return [source.randrange(_FIRST_TOKEN, _VOCAB_SIZE) for _ in range(count)]


def _item(source: random.Random, prompt_len: int, draw_output_len: Callable[[], int]) -> Item:
    # The prompt is drawn before the output's length: the order is part of what a seed means.
    prompt = _tokens(source, prompt_len)
    return Item(prompt, draw_output_len())


_NAMED: dict[str, Callable[[], list[Item]]] = {
    "batch1_decode": lambda: fixed(1, 128, 256),
    "uniform256": lambda: uniform(256, 100, 1024, seed=0),
    "uniform1024": lambda: uniform(1024, 100, 1024, seed=0),
    "prefill4k": lambda: fixed(32, 4096, 1),
    "decode256": lambda: fixed(256, 128, 512),
    "shared_prefix": lambda: shared_prefix(256, 2000, 64, 16, seed=2),
    "tiny": lambda: fixed(4, 24, 8),
}
NAMES = tuple(_NAMED)


def named(name: str) -> Workload:
    """One of NAMES. Raises InvalidRequest for another name."""
    if name not in _NAMED:
        raise InvalidRequest(f"no workload {name}: there are {', '.join(NAMES)}", param="workload")
    return Workload(name, _NAMED[name]())


def of_lengths(count: int, prompt_len: int, output_len: int) -> Workload:
    """`count` random prompts of one size."""
    return Workload(f"{count}x{prompt_len}+{output_len}", fixed(count, prompt_len, output_len))
