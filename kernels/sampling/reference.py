"""Plain torch."""

import torch

from kernels.sampling.philox import philox, to_uniform

# Keeps both logarithms of the Gumbel transform finite.
_SMALLEST, _LARGEST = 2.0**-33, 1.0 - 2.0**-24


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
    is_greedy = temperature == 0
    scaled = logits / torch.where(is_greedy, 1.0, temperature)[:, None]
    if bool(((top_k > 0) | (top_p < 1) | (min_p > 0)).any()):
        scaled = _filter(scaled, top_k, top_p, min_p)
    token_ids = torch.arange(logits.shape[1], device=logits.device)[None, :]
    uniform = to_uniform(philox(seeds[:, None], token_ids, positions[:, None]))
    gumbel = -torch.log(-torch.log(uniform.clamp(_SMALLEST, _LARGEST)))
    return torch.where(is_greedy, logits.argmax(dim=-1), (scaled + gumbel).argmax(dim=-1))


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
    ordered = ordered.masked_fill((before >= top_p[:, None]) & (top_p < 1)[:, None], float("-inf"))
    likeliest = probabilities[:, :1]
    ordered = ordered.masked_fill((probabilities < min_p[:, None] * likeliest) & (rank > 0), float("-inf"))
    return torch.empty_like(ordered).scatter_(1, order, ordered)
