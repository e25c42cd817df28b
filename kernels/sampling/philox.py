"""Philox-4x32-10 in torch integers, bit for bit what Triton's `tl.philox` computes."""

import torch

_MASK = 0xFFFFFFFF
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_ROUNDS = 10
# Triton's uint_to_uniform_float: the largest float32 below 2**-31, so that the result stays below 1.
_TO_UNIFORM = 4.6566127342e-10


def philox(seeds: torch.Tensor, c0: torch.Tensor, c1: torch.Tensor) -> torch.Tensor:
    """First output word of Philox-4x32-10 with counter (c0, c1, 0, 0), as int64 in [0, 2**32).

    seeds int64 (the bits of a uint64), c0 and c1 int64 in [0, 2**32); shapes broadcast.
    """
    k0, k1 = seeds & _MASK, (seeds >> 32) & _MASK
    c2 = c3 = torch.zeros((), dtype=torch.int64, device=seeds.device)
    for _ in range(_ROUNDS):
        # int64 products wrap modulo 2**64, which keeps both halves exact.
        product_b, product_a = c2 * _ROUND_B, c0 * _ROUND_A
        c0 = ((product_b >> 32) & _MASK) ^ c1 ^ k0
        c2 = ((product_a >> 32) & _MASK) ^ c3 ^ k1
        c1, c3 = product_b & _MASK, product_a & _MASK
        k0, k1 = (k0 + _KEY_A) & _MASK, (k1 + _KEY_B) & _MASK
    return c0


def to_uniform(bits: torch.Tensor) -> torch.Tensor:
    """32 random bits (int64) to float32 in [0, 1), as Triton's `uint_to_uniform_float` does."""
    signed = torch.where(bits >= 2**31, bits - 2**32, bits)
    magnitude = torch.where(signed < 0, -signed - 1, signed)
    return magnitude.float() * _TO_UNIFORM
