"""How far log-probabilities that were reported lie from those of the reference on the same tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.gpu_proof.reference import Reference, Transcript
from quire import RequestOutput

_LEAST = 1e-12


@dataclass(frozen=True)
class Divergence:
    """Over all tokens of all outputs; natural logarithm."""

    tokens: int
    mean: float
    """Absolute error of the chosen tokens' log-probabilities."""
    largest: float
    kl: float
    """From the reference's distribution to ours, over the likeliest tokens reported and all others as one; mean."""


def divergence(reference: Reference, outputs: Sequence[RequestOutput]) -> Divergence:
    """Of outputs whose prompts were token ids and which have log-probabilities with some likeliest tokens."""
    transcripts = [Transcript(list(map(int, item.prompt)), item.outputs[0].token_ids) for item in outputs]  # type: ignore[arg-type]
    errors, divergences = [], []
    for index, logits in reference.logits(transcripts):
        reported = outputs[index].outputs[0].logprobs
        if not reported:
            continue
        exact = torch.log_softmax(logits, dim=-1).cpu().double()
        chosen = torch.tensor([token.logprob for token in reported], dtype=torch.float64)
        token_ids = torch.tensor([token.token_id for token in reported])
        errors.append((exact.gather(1, token_ids[:, None])[:, 0] - chosen).abs())
        top_ids = torch.tensor([[rival.token_id for rival in token.top] for token in reported])
        ours = torch.tensor([[rival.logprob for rival in token.top] for token in reported]).double()
        divergences.append(kl(exact.gather(1, top_ids), ours))
    every = torch.cat(errors)
    return Divergence(
        len(every), float(every.mean()), float(every.max()), float(torch.cat(divergences).mean())
    )


def kl(exact: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence, [n], between log-probabilities [n, top] of the same tokens; the rest is one more."""
    rest_exact = (1 - exact.exp().sum(dim=-1)).clamp(min=_LEAST)
    rest_ours = (1 - ours.exp().sum(dim=-1)).clamp(min=_LEAST)
    of_top = (exact.exp() * (exact - ours)).sum(dim=-1)
    return of_top + rest_exact * (rest_exact / rest_ours).log()
