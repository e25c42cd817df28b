"""How keys and values lie in a cache of 8 bits: as e4m3 numbers that one scale per head turns into the real ones.

Micikevicius et al., "FP8 Formats for Deep Learning", 2022. A scale moves the range, not the precision: every number
from 2⁻⁶ to 448 keeps three bits after its first one. Scales that are powers of two round nothing themselves.
"""

from typing import NamedTuple

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


class KvScales(NamedTuple):
    """What stored keys and values of a layer are multiplied with, float32 [kv_heads] each."""

    keys: torch.Tensor
    values: torch.Tensor


def scale_of(largest: torch.Tensor) -> torch.Tensor:
    """The least power of two, float32, that brings numbers up to `largest` into the range; any shape."""
    return torch.exp2(torch.ceil(torch.log2(largest.float().clamp(min=1e-6) / FP8_MAX)))


def stored(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x [n, kv_heads, d] as it lies in the cache; what is out of range becomes the range's end."""
    return (x.float() / scale[:, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8)
