"""Plain torch."""

from collections.abc import Sequence

import torch

from kernels.block_checksums import LAYER_FACTOR


def block_checksums(caches: Sequence[torch.Tensor], block_ids: torch.Tensor) -> torch.Tensor:
    """See `kernels.block_checksums`."""
    total = torch.zeros(len(block_ids), dtype=torch.int64, device=block_ids.device)
    for number, layer in enumerate(layer for cache in caches for layer in cache):
        bits = layer[block_ids].to(torch.int64)
        # Odd multipliers, so that no change of one place is lost modulo 2**64.
        places = torch.arange(bits.shape[1], device=block_ids.device) * 2 + 2 * number + 1
        total = total * LAYER_FACTOR + (bits * places).sum(dim=1)
    return total
