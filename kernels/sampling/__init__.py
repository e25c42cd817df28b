"""Choosing tokens: greedy, or a sample that depends on the row's seed and position and on nothing else.

The sample is the argmax of filtered logits plus Gumbel noise, which is distributed as their softmax (Gumbel,
1954). The noise comes from Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
keyed by the 64-bit seed, with counter (token id // 4, position, 0, 0), whose word token id % 4 is the token's: see
`philox.token_uniforms`. Triton's `tl.philox` gives the same bits.

Each filter keeps tokens from the likeliest down, the lower id first among equals: top-k so many, top-p until the mass
before a token, as a share of what top-k keeps, reaches top_p, min-p those at least min_p times as likely as the
likeliest. The likeliest token is always kept. Which tokens a filter keeps is a question of rounding only where a
sum of probabilities equals top_p, or a ratio min_p, to about six digits; there implementations may differ.

Floor: one read of the logits, 18 us for 256 rows of 151,936 bfloat16 on an H200 at its copy rate. Measured there:
greedy 29 us (62 %), temperature alone 71 (26 %; the noise costs 37 instructions a token), top-k 20 76 (24 %), min-p 87
(21 %), top-p 0.9 of nearly flat rows 242 and of peaked ones 233 (8 %), 0.3 of flat ones 519; one row 2.3, 3.0, 20, 10,
16 and 15 us (`quire bench kernels`).
"""

import torch

from kernels.dispatch import implementation


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row; the lowest id among equals. logits [n, vocab]; returns int64 [n]."""
    result: torch.Tensor = implementation("sampling", logits).greedy(logits)
    return result


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """A token per row, int64 [n]: temperature, then top-k, top-p and min-p, then a draw; greedy at temperature 0.

    logits [n, vocab] of any float dtype (-inf forbids a token); temperature, top_p, min_p [n] float32; top_k [n] int64
    (0 keeps all); seeds [n] int64 (the bits of a uint64); positions [n] int64: of the token to be drawn.
    """
    result: torch.Tensor = implementation("sampling", logits).sample(
        logits, temperature, top_k, top_p, min_p, seeds, positions
    )
    return result


def sample_unfiltered(
    logits: torch.Tensor, temperature: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """`sample` for a batch in which no row has a filter: the same tokens with one read of the logits."""
    result: torch.Tensor = implementation("sampling", logits).sample_unfiltered(
        logits, temperature, seeds, positions
    )
    return result
