"""Philox-4x32-10 in torch integers, bit for bit what Triton's `tl.philox` computes, and which token gets which bits."""

import torch

_MASK = 0xFFFFFFFF
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_ROUNDS = 10
_LARGEST = 1.0 - 2.0**-24


def philox(
    seeds: torch.Tensor, c0: torch.Tensor, c1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The four output words of Philox-4x32-10 with counter (c0, c1, 0, 0), as int64 in [0, 2**32).

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
    return c0, c1, c2, c3


def token_uniforms(vocab: int, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The random number of every token at some positions, float32 [n, vocab] in (0, 1); seeds, positions int64 [n].

    Token t gets word t % 4 of the counter (t // 4, position); the word plus a half, over 2**32, is its number: near 0,
    where the noise of the tokens that win comes from, it has all of its 24 bits.
    """
    quads = torch.arange((vocab + 3) // 4, device=seeds.device)[None, :]
    words = torch.stack(philox(seeds[:, None], quads, positions[:, None]), dim=-1)
    bits = words.flatten(1)[:, :vocab]
    return (bits.float() * 2.0**-32 + 2.0**-33).clamp(max=_LARGEST)
