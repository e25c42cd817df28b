"""Changes JSON documents as documents: single bytes changed at random mostly leave no JSON."""

import json
import random
from collections.abc import Callable, Sequence
from math import inf, nan
from typing import Any

Mutate = Callable[[bytes, int], bytes]
"""Changes bytes to at most so many others."""

_BY_BYTES = 0.2
_MOST_CHANGES = 3
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, -(2**31) - 1, 2**63, 2**64, 10**40, 0.5, -0.0, 1e-320, 1e308, inf, -inf, nan,
    "", "a", "0", "\0", "\r\n\u2028", "\ud800", "{}", '{"a": "\\ud800"}', "[" * 2000, "a" * 300, "\U0001f44d",
    [], {}, [[]], [{}], [None], [1, "a"], {"": None}, {"a": {"b": []}},
)  # fmt: skip


class JsonMutator:
    """A custom mutator of atheris. `words` are names and values that mean something to the target."""

    def __init__(self, words: Sequence[str], mutate_bytes: Mutate) -> None:
        self._words = words
        self._mutate_bytes = mutate_bytes

    def __call__(self, data: bytes, max_size: int, seed: int) -> bytes:
        """Another document; other bytes where that is no document, or for a change."""
        rng = random.Random(seed)
        try:
            document = json.loads(data)
            if rng.random() >= _BY_BYTES:
                for _ in range(rng.randint(1, _MOST_CHANGES)):
                    document = self._changed(document, rng)
                changed = json.dumps(document).encode()
                if len(changed) <= max_size:
                    return changed
        except (ValueError, RecursionError):
            pass
        return self._mutate_bytes(data, max_size)

    def _changed(self, value: Any, rng: random.Random) -> Any:
        if not isinstance(value, (dict, list)) or rng.random() < 0.1:
            return self._value(rng, value)
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys or rng.random() < 0.2:
            return self._grown(value, rng)
        key = rng.choice(keys)
        if rng.random() < 0.1:
            del value[key]
        else:
            value[key] = self._changed(value[key], rng)
        return value

    def _grown(self, value: dict[str, Any] | list[Any], rng: random.Random) -> Any:
        new = self._value(rng, None)
        if isinstance(value, dict):
            value[rng.choice((*self._words, "a"))] = new
        else:
            value.insert(rng.randint(0, len(value)), new)
        return value

    def _value(self, rng: random.Random, old: Any) -> Any:
        draw = rng.random()
        if draw < 0.1:
            return [old]
        if draw < 0.4 and self._words:
            return rng.choice(self._words)
        if draw < 0.5:
            return rng.randint(-(2 ** rng.randint(0, 65)), 2 ** rng.randint(0, 65))
        return json.loads(json.dumps(rng.choice(_VALUES)))
