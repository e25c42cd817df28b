"""Held-out samples, scores and targets: the same for every way of asking the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from tokenizers import Tokenizer

from demo_model.chat import render
from demo_model.mixture import SHORT
from demo_model.sample import Answer, Sample, is_right
from demo_model.tasks import echo, lookup

RETRIEVAL = {"retrieval_512": 512, "retrieval_2k": 2048, "retrieval_4k": 4096, "retrieval_7k": 7168}
"""Longest prompt, in tokens, of each retrieval task; the 7k one has no target and shows where it ends."""
TARGETS = {
    "retrieval_512": 0.99, "retrieval_2k": 0.99, "retrieval_4k": 0.99, "echo": 0.99, "copy": 0.99, "long_copy": 0.99,
    "arithmetic": 0.97, "json": 0.98, "tool_call": 0.97,
}  # fmt: skip
SHORT_FORM = [
    "retrieval_512",
    "retrieval_4k",
    "echo",
    "copy",
    "arithmetic",
    "json",
    "tool_call",
    "memory",
    "thinking",
]
TASKS = [*RETRIEVAL, "long_copy", *[name for name in SHORT if name != "retrieval"]]

# Room for the answer and for the tokens that the chat template adds.
_ANSWER_ROOM = 40


def held_out(task: str, count: int, seed: int, tokenizer: Tokenizer) -> list[Sample]:
    """`count` samples of a task that no training run has drawn: their seeds are in a space of their own."""
    return [_held_out_one(task, Random(f"eval:{seed}:{task}:{number}"), tokenizer) for number in range(count)]


def _held_out_one(task: str, rng: Random, tokenizer: Tokenizer) -> Sample:
    if task == "long_copy":
        return echo.long_copy(rng, 2000)
    if task not in RETRIEVAL:
        return SHORT[task][0](rng)
    limit = RETRIEVAL[task] - _ANSWER_ROOM

    def cost(line: str) -> int:
        return len(tokenizer.encode(line + "\n").ids)

    while True:
        sample = lookup.retrieval(rng, limit, cost, turns=1)
        if prompt_tokens(sample, tokenizer) <= limit:
            return sample


def prompt_tokens(sample: Sample, tokenizer: Tokenizer) -> int:
    """Length of the rendered prompt of a sample, in tokens."""
    return len(tokenizer.encode(render(sample.prompt(), sample.tools, add_generation_prompt=True)).ids)


def answer_room(sample: Sample, tokenizer: Tokenizer) -> int:
    """How many tokens an answer may take: those of the gold answer and some to go wrong in."""
    gold = render([sample.messages[-1]])
    return len(tokenizer.encode(gold).ids) + 16


class Engine(Protocol):
    """A way to ask the model."""

    def answers(self, samples: list[Sample]) -> list[Answer]:
        """The model's answer to each sample, in order."""
        ...


@dataclass
class TaskScore:
    """How one task went."""

    task: str
    right: int
    count: int
    seconds: float
    target: float | None
    misses: list[dict[str, Any]] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.right / max(1, self.count)

    def as_dict(self) -> dict[str, Any]:
        """For JSON output."""
        return {
            "task": self.task, "accuracy": round(self.accuracy, 4), "right": self.right, "count": self.count,
            "target": self.target, "seconds": round(self.seconds, 2), "misses": self.misses,
        }  # fmt: skip


def score(
    engine: Engine, tasks: Iterable[str], count: int, seed: int, tokenizer: Tokenizer,
    report: Callable[[TaskScore], None], keep_misses: int = 5,
) -> list[TaskScore]:  # fmt: skip
    """Ask `count` samples of each task and judge the answers; `report` hears of each task as it ends."""
    scores = []
    for task in tasks:
        samples = held_out(task, count, seed, tokenizer)
        began = time.monotonic()
        answers = engine.answers(samples)
        seconds = time.monotonic() - began
        wrong = [
            {"asked": sample.prompt()[-1]["content"][-300:], "want": sample.check.want, "got": vars(answer)}
            for sample, answer in zip(samples, answers, strict=True)
            if not is_right(sample.check, answer)
        ]
        result = TaskScore(task, count - len(wrong), count, seconds, TARGETS.get(task), wrong[:keep_misses])
        report(result)
        scores.append(result)
    return scores
