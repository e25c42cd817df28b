"""Plain torch."""

import torch

from kernels.sampling.philox import token_uniforms

# So that a logit of 0 stays 0 at any temperature.
_LARGEST_INVERSE = 2.0**126


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """See `kernels.sampling`."""
    return logits.argmax(dim=-1)


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """See `kernels.sampling`."""
    scaled = _scaled(logits, temperature)
    if bool(((top_k > 0) | (top_p < 1) | (min_p > 0)).any()):
        scaled = _filter(scaled, top_k, top_p, min_p)
    drawn = (scaled + gumbel(logits.shape[1], seeds, positions)).argmax(dim=-1)
    return torch.where(temperature == 0, logits.argmax(dim=-1), drawn)


def sample_unfiltered(
    logits: torch.Tensor, temperature: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """See `kernels.sampling`."""
    noisy = _scaled(logits, temperature) + gumbel(logits.shape[1], seeds, positions)
    return torch.where(temperature == 0, logits.argmax(dim=-1), noisy.argmax(dim=-1))


def _scaled(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    inverse = torch.where(temperature == 0, 1.0, temperature).reciprocal().clamp(max=_LARGEST_INVERSE)
    return logits.float() * inverse[:, None]


def gumbel(vocab: int, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The noise of every token at some positions, float32 [n, vocab]."""
    return -torch.log(-torch.log1p(-token_uniforms(vocab, seeds, positions)))


def _filter(
    logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """Logits with all that the three filters drop at -inf, as transformers' warpers in that order."""
    vocab = logits.shape[1]
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab, device=logits.device)[None, :]
    kept = torch.where(top_k > 0, top_k, vocab)[:, None]
    ordered = ordered.masked_fill(rank >= kept, float("-inf"))
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    excess = (before >= top_p[:, None]) & (top_p < 1)[:, None] & (rank > 0)
    ordered = ordered.masked_fill(excess, float("-inf"))
    likeliest = probabilities[:, :1]
    ordered = ordered.masked_fill((probabilities < min_p[:, None] * likeliest) & (rank > 0), float("-inf"))
    return torch.empty_like(ordered).scatter_(1, order, ordered)
