"""From logits to tokens: peaked rows are like a model's, flat ones are the filters' worst case."""

from collections.abc import Iterator
from functools import partial

import torch

from kernels.bench.cases import Case, Sizes
from kernels.logits import apply_penalties
from kernels.logprobs import logprobs
from kernels.sampling import greedy, sample, sample_unfiltered


def sampling_cases(sizes: Sizes, rows: int, device: str) -> Iterator[Case]:
    """Penalties, the ways to choose, and log-probabilities; each reads the logits at least once."""
    vocab = sizes.vocab
    flat = torch.randn(rows, vocab, device=device).bfloat16().float()
    peaked = flat * 2
    peaked[:, torch.randperm(vocab, device=device)[:50]] += 8
    peaked = peaked.bfloat16().float()
    ones, zeros = torch.ones(rows, device=device), torch.zeros(rows, device=device)
    none = torch.zeros(rows, dtype=torch.int64, device=device)
    seeds, positions = torch.randint(0, 2**62, (2, rows), device=device)
    read = rows * vocab * 4
    counts = torch.zeros(rows, vocab, dtype=torch.int32, device=device)
    in_prompt = torch.zeros(rows, vocab, dtype=torch.bool, device=device)
    yield Case(
        "penalties", rows, read * 3 + read // 4, 0,
        [lambda: apply_penalties(peaked, counts, in_prompt, ones * 1.1, zeros, zeros)],
    )  # fmt: skip
    yield Case("greedy", rows, read, 0, [lambda: greedy(peaked)])
    yield Case("temperature", rows, read, 0, [lambda: sample_unfiltered(peaked, ones, seeds, positions)])
    mixtures = {
        "no filter": (peaked, none, 1.0, 0.0),
        "top-k 20": (peaked, none + 20, 1.0, 0.0),
        "top-p 0.9": (peaked, none, 0.9, 0.0),
        "top-k 20, top-p 0.95": (peaked, none + 20, 0.95, 0.0),
        "min-p 0.05": (peaked, none, 1.0, 0.05),
        "top-p 0.9, flat": (flat, none, 0.9, 0.0),
    }
    for name, (logits, top_k, top_p, min_p) in mixtures.items():
        columns = (ones, top_k, ones * top_p, ones * min_p, seeds, positions)
        yield Case(f"sample: {name}", rows, read, 0, [partial(sample, logits, *columns)])
    yield Case("logprobs: none", rows, read, 0, [lambda: logprobs(peaked, none, 0)])
    yield Case("logprobs: 20", rows, read, 0, [lambda: logprobs(peaked, none, 20)])
