"""transformers in float32 as the judge: each token of a transcript is held against the logits of what came before it.

Teacher-forced on the transcript's own tokens, so that one near-tie does not make everything after it incomparable. A
greedy token is right where its logit is the largest, and a tie where it falls short by at most GREEDY_TIE: both sides
compute in float32, in another order. A sum of K products errs by about sqrt(K) 2^-24 of its size and a decoder has some
ten such sums a layer, so logits of about 20 differ by some 1e-5 to 1e-4; 1e-3 is ten times that, and far below the gap
of 0.1 to 10 that a wrong block, position or mask makes.

Seeded tokens are judged by the same rule on logits over temperature plus the Gumbel noise that `kernels.sampling`
documents, computed here in float64 of the same float32 random numbers. The GPU's noise errs by some 1e-6, and what the
logits err by is divided by the temperature: SEEDED_TIE is twice GREEDY_TIE, for temperatures from a half on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kernels.sampling.philox import token_uniforms

GREEDY_TIE, SEEDED_TIE = 1e-3, 2e-3

_CPU_POSITIONS, _GPU_POSITIONS = 4096, 32768
_SCORES_AT_ONCE = 2**27
"""Most attention scores of one head and layer in a batch."""
_DRAWN_AT_ONCE = 1024


@dataclass(frozen=True)
class Transcript:
    """A sequence as it was generated."""

    prompt: Sequence[int]
    tokens: Sequence[int]
    temperature: float = 0.0
    seed: int = 0
    """Of the sequence, not of its request; as a uint64."""
    logprobs: Sequence[float] = ()
    """Of the tokens, where they were asked for."""
    name: str = ""


@dataclass
class Findings:
    """Of all transcripts judged so far."""

    num_tokens: int = 0
    num_exact: int = 0
    """Tokens whose score is the largest."""
    num_ties: int = 0
    num_wrong: int = 0
    largest_tie: float = 0.0
    """Most by which a token fell short and was called a tie."""
    num_logprobs: int = 0
    largest_logprob_error: float = 0.0
    wrong: list[dict[str, Any]] = field(default_factory=list)
    """The first of them."""

    def as_dict(self) -> dict[str, Any]:
        """For a report."""
        return dict(vars(self))


class Reference:
    """The checkpoint as transformers loads it, in float32, with attention spelled out (`eager`)."""

    def __init__(self, directory: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        )
        self.model: Any = model.to(device).eval()
        self.device = device
        self._positions = _CPU_POSITIONS if device == "cpu" else _GPU_POSITIONS

    @torch.inference_mode()
    def logits(self, transcripts: Sequence[Transcript]) -> Iterator[tuple[int, torch.Tensor]]:
        """Index of each transcript, and float32 [its tokens, vocab] from which each of its tokens was chosen."""
        lengths = [len(item.prompt) + len(item.tokens) for item in transcripts]
        order = sorted(range(len(transcripts)), key=lambda index: lengths[index])
        while order:
            batch = self._next_batch(order, lengths)
            padded = torch.zeros((len(batch), lengths[batch[-1]]), dtype=torch.int64)
            for row, index in enumerate(batch):
                item = transcripts[index]
                padded[row, : lengths[index]] = torch.tensor([*item.prompt, *item.tokens])
            # What fills up is on the right, where nothing that counts looks.
            logits = self.model(padded.to(self.device), use_cache=False).logits
            for row, index in enumerate(batch):
                yield index, logits[row, len(transcripts[index].prompt) - 1 : lengths[index] - 1]

    def _next_batch(self, order: list[int], lengths: Sequence[int]) -> list[int]:
        """Take the next transcripts, of like length, from `order`."""
        size = 1
        while size < len(order):
            longest = lengths[order[size]]
            positions = (size + 1) * longest
            if positions > self._positions or positions * longest > _SCORES_AT_ONCE:
                break
            size += 1
        batch = order[:size]
        del order[:size]
        return batch

    def judge(self, transcripts: Sequence[Transcript], findings: Findings) -> None:
        """Add what is found of some transcripts to `findings`."""
        for index, logits in self.logits(transcripts):
            judge_one(transcripts[index], logits, findings)


def judge_one(item: Transcript, logits: torch.Tensor, findings: Findings) -> None:
    """Hold the tokens of one transcript against their logits, float32 [tokens, vocab]."""
    if not len(item.tokens):
        return
    tokens = torch.tensor(list(item.tokens), device=logits.device)
    shortfall = torch.cat([
        _shortfall(item, logits[first : first + _DRAWN_AT_ONCE], tokens[first : first + _DRAWN_AT_ONCE], first)
        for first in range(0, len(tokens), _DRAWN_AT_ONCE)
    ])  # fmt: skip
    short = shortfall.cpu()
    tie = SEEDED_TIE if item.temperature > 0 else GREEDY_TIE
    is_tie = (short > 0) & (short <= tie)
    findings.num_tokens += len(short)
    findings.num_exact += int((short == 0).sum())
    findings.num_ties += int(is_tie.sum())
    findings.largest_tie = max(findings.largest_tie, float(torch.where(is_tie, short, 0).max()))
    # Not `short > tie`: what is not a number is wrong too.
    for at in torch.nonzero(~(short <= tie))[:, 0].tolist():
        findings.num_wrong += 1
        if len(findings.wrong) < 10:
            findings.wrong.append(
                {
                    "name": item.name, "prompt_tokens": len(item.prompt), "token": at, "of": len(item.tokens),
                    "temperature": item.temperature, "shortfall": float(short[at]),
                }
            )  # fmt: skip
    if item.logprobs:
        expected = torch.log_softmax(logits, dim=-1).gather(1, tokens[:, None])[:, 0].cpu()
        errors = (expected - torch.tensor(list(item.logprobs))).abs()
        findings.num_logprobs += len(errors)
        findings.largest_logprob_error = max(findings.largest_logprob_error, float(errors.max()))


def _shortfall(item: Transcript, logits: torch.Tensor, tokens: torch.Tensor, first: int) -> torch.Tensor:
    """How far the score of each token is below the largest, [n]; `first` is the index of the first token."""
    scores = logits
    if item.temperature > 0:
        place = len(item.prompt) + first
        positions = torch.arange(place, place + len(tokens), device=logits.device)
        seed = item.seed if item.seed < 2**63 else item.seed - 2**64
        scores = logits.double() / item.temperature + gumbel(seed, positions, logits.shape[1])
    return scores.amax(dim=-1) - scores.gather(1, tokens[:, None])[:, 0]


def gumbel(seed: int, positions: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Noise of tokens at some positions, float64 [positions, vocab]; `seed` as the bits of a uint64 in an int64."""
    seeds = torch.full_like(positions, seed)
    return -torch.log(-torch.log1p(-token_uniforms(vocab_size, seeds, positions).double()))
