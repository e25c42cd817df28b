"""Fresh training packs from many processes, ahead of the GPU.

Pack number n of a run depends on the seed, n and the run's length alone, so a resumed run sees the data that an
unbroken one would have seen.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.queues import Queue
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from demo_model.chat import ASSISTANT_OPENING, END, render
from demo_model.mixture import draw
from demo_model.sample import Sample

LONGEST_SHORT = 1024
LONGEST_LONG = 8192
_CHUNK = 48


@dataclass
class Pack:
    """T tokens of whole conversations, end to end; all arrays are [T] but `bounds` [N + 1]."""

    tokens: NDArray[np.uint16]
    positions: NDArray[np.uint16]
    targets: NDArray[np.uint16]
    weights: NDArray[np.float32]
    """Loss weight of predicting each target: nonzero for what the assistant says, end of turn included."""
    bounds: NDArray[np.int32]
    longest: int


def long_length(rng: Random, progress: float) -> int:
    """How long a long prompt is, in tokens, at a point of training between 0 and 1: the range grows in stages."""
    if progress < 0.04:
        return rng.randint(300, 1000)
    if progress < 0.10:
        return rng.randint(500, 2200)
    if progress > 0.4 and rng.random() < 0.12:
        return rng.randint(4400, 7600)
    return rng.randint(600, 4450)


def loss_mask(ids: NDArray[np.uint16], opening: list[int], end: int) -> NDArray[np.bool_]:
    """Which tokens [T] the assistant says: all after its opening up to and including the end of the turn."""
    mask = np.zeros(len(ids), dtype=bool)
    begins = np.flatnonzero(ids == opening[0])
    ends = np.flatnonzero(ids == end)
    for begin, stop in zip(begins, ends, strict=True):
        after = begin + len(opening)
        if list(ids[begin:after]) == opening:
            mask[after : stop + 1] = True
    return mask


class Packer:
    """Draws samples and packs them."""

    def __init__(self, tokenizer: Tokenizer, seed: int, total_steps: int, size: int) -> None:
        self.tokenizer, self.seed, self.total_steps, self.size = tokenizer, seed, total_steps, size
        self.opening = tokenizer.encode(ASSISTANT_OPENING).ids
        self.end = tokenizer.token_to_id(END)

    def _encode(self, samples: list[Sample]) -> list[NDArray[np.uint16]]:
        texts = [render(sample.messages, sample.tools) for sample in samples]
        return [
            np.array(encoding.ids, dtype=np.uint16) for encoding in self.tokenizer.encode_batch_fast(texts)
        ]

    def pack(self, step: int, long: bool) -> Pack:
        """The short or the long pack of a step."""
        rng = Random(f"train:{self.seed}:{step}:{long}")
        progress = step / self.total_steps
        longest = min(self.size, LONGEST_LONG if long else LONGEST_SHORT)
        limit = self.size // (256 if long else 64)
        documents: list[tuple[NDArray[np.uint16], float]] = []
        used = 0
        while True:
            draws = [
                draw(rng, long_length(rng, progress) if long else None) for _ in range(4 if long else _CHUNK)
            ]
            for sample, ids in zip(draws, self._encode(draws), strict=True):
                if len(ids) > longest:
                    continue
                if used + len(ids) > self.size or len(documents) == limit:
                    return self._assemble(documents, limit, longest)
                documents.append((ids, sample.weight))
                used += len(ids)

    def _assemble(self, documents: list[tuple[NDArray[np.uint16], float]], limit: int, longest: int) -> Pack:
        tokens, positions, targets = (np.zeros(self.size, dtype=np.uint16) for _ in range(3))
        weights = np.zeros(self.size, dtype=np.float32)
        bounds = np.full(limit + 2, self.size, dtype=np.int32)
        at = 0
        for number, (ids, weight) in enumerate(documents):
            stop = at + len(ids)
            tokens[at:stop] = ids
            positions[at:stop] = np.arange(len(ids))
            targets[at : stop - 1] = ids[1:]
            weights[at : stop - 1] = loss_mask(ids, self.opening, self.end)[1:] * weight
            bounds[number] = at
            at = stop
        bounds[len(documents)] = at
        # What is left over must be cut to the longest length that the attention kernel is told of.
        for number in range(len(documents) + 1, limit + 2):
            bounds[number] = min(self.size, at + longest * (number - len(documents)))
        return Pack(tokens, positions, targets, weights, bounds, longest)


def _produce(queue: Queue[Any], packer_args: tuple[Any, ...], steps: range) -> None:
    path, *rest = packer_args
    packer = Packer(Tokenizer.from_file(path), *rest)
    for step in steps:
        queue.put((packer.pack(step, False), packer.pack(step, True)))


def stream(
    tokenizer_path: str, seed: int, total_steps: int, size: int, first: int, workers: int
) -> Iterator[tuple[Pack, Pack]]:
    """Short and long pack of each step from `first` on, made by `workers` processes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    context = multiprocessing.get_context("spawn")
    queues: list[Queue[Any]] = [context.Queue(maxsize=6) for _ in range(workers)]
    arguments = (tokenizer_path, seed, total_steps, size)
    processes = [
        context.Process(
            target=_produce, args=(queue, arguments, range(first + number, total_steps, workers)), daemon=True
        )
        for number, queue in enumerate(queues)
    ]
    for process in processes:
        process.start()
    for step in range(first, total_steps):
        yield queues[(step - first) % workers].get()
