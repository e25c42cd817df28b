"""From logits to tokens: peaked rows are like a model's, flat ones are the filters' worst case."""

from collections.abc import Iterator
from functools import partial

import torch

from kernels.bench.cases import Case, Sizes
from kernels.logits import Bans, Bias, Bitmask, TokenLists, apply_penalties, edit_logits
from kernels.logprobs import logprobs
from kernels.sampling import greedy, sample, sample_unfiltered

_DRAWS = 32
"""How long top-p takes depends on what is drawn: few rows are drawn with several seeds."""
_LISTED = 300
"""Tokens of a bias, and of a ban: as many as OpenAI's API lets a request name."""


def sampling_cases(sizes: Sizes, rows: int, device: str) -> Iterator[Case]:
    """Edits, the ways to choose, and log-probabilities: of bfloat16, as models give it."""
    flat = torch.randn(rows, sizes.vocab, device=device).bfloat16()
    peaked = flat * 2
    peaked[:, torch.randperm(sizes.vocab, device=device)[:50]] += 8
    yield from _edit_cases(peaked, rows, device)
    yield from _draw_cases(flat, peaked, rows, device)
    chosen = torch.zeros(rows, dtype=torch.int64, device=device)
    for count in (0, 20):
        call = partial(logprobs, peaked, chosen, count)
        yield Case(f"logprobs: {count or 'none'}", rows, peaked.nbytes, 0, [call])


def _edit_cases(logits: torch.Tensor, rows: int, device: str) -> Iterator[Case]:
    """Penalties read bfloat16 and counts and write float32; the others change that in place."""
    vocab = logits.shape[1]
    ones, every_row = torch.ones(rows, device=device), torch.arange(rows, device=device)
    counts = torch.zeros(rows, vocab, dtype=torch.int32, device=device)
    in_prompt = torch.zeros(rows, vocab, dtype=torch.bool, device=device)
    yield Case(
        "penalties", rows, logits.nbytes * 3 + counts.nbytes + in_prompt.nbytes, 0,
        [lambda: apply_penalties(logits, every_row, counts, in_prompt, ones * 1.1, ones, ones)],
    )  # fmt: skip
    edited = logits.float()
    listed = min(_LISTED, vocab)
    starts = torch.arange(rows + 1, dtype=torch.int32, device=device) * listed
    tokens = torch.cat([torch.randperm(vocab, device=device)[:listed] for _ in range(rows)]).int()
    lists = TokenLists(starts, tokens)
    bias = Bias(lists, torch.randn(len(tokens), device=device))
    bans = Bans(lists, every_row, torch.full_like(every_row, rows))
    # A number or an id, and the logit read and written.
    yield Case(
        "bias and bans", rows, len(tokens) * (4 * 4 + 2 * 4), 0, [lambda: edit_logits(edited, bias, bans)]
    )
    words = torch.randint(-(2**31), 2**31 - 1, (rows, (vocab + 31) // 32), device=device).int()
    bitmask = Bitmask(every_row, words)
    yield Case(
        "bitmask", rows, words.nbytes + edited.nbytes // 2, 0,
        [lambda: edit_logits(edited, bitmask=bitmask)], "half is forbidden",
    )  # fmt: skip


def _draw_cases(flat: torch.Tensor, peaked: torch.Tensor, rows: int, device: str) -> Iterator[Case]:
    ones = torch.ones(rows, device=device)
    none = torch.zeros(rows, dtype=torch.int64, device=device)
    draws = [torch.randint(0, 2**62, (2, rows), device=device) for _ in range(max(1, _DRAWS // rows))]
    read = peaked.nbytes
    yield Case("greedy", rows, read, 0, [lambda: greedy(peaked)])
    yield Case("temperature", rows, read, 0, [partial(sample_unfiltered, peaked, ones, *draws[0])])
    mixtures = {
        "no filter": (peaked, 1.0, 0, 1.0, 0.0),
        "top-k 20": (peaked, 1.0, 20, 1.0, 0.0),
        "top-k 200": (peaked, 1.0, 200, 1.0, 0.0),
        "top-p 0.9": (peaked, 1.0, 0, 0.9, 0.0),
        "top-k 20, top-p 0.95": (peaked, 1.0, 20, 0.95, 0.0),
        "min-p 0.05": (peaked, 1.0, 0, 1.0, 0.05),
        "top-p 0.9, flat": (flat, 1.0, 0, 0.9, 0.0),
        "top-p 0.9, flat, temperature 1.5": (flat, 1.5, 0, 0.9, 0.0),
        "top-p 0.3, flat": (flat, 1.0, 0, 0.3, 0.0),
    }
    for name, (logits, temperature, top_k, top_p, min_p) in mixtures.items():
        columns = (ones * temperature, none + top_k, ones * top_p, ones * min_p)
        calls = [partial(sample, logits, *columns, *draw) for draw in draws]
        yield Case(f"sample: {name}", rows, read, 0, calls)
