"""Checksums of KV blocks, by which a scheduler that takes over a worker's cache knows that it is what it was.

Floor: one read of the blocks.
"""

from collections.abc import Sequence

import torch

from kernels.dispatch import implementation

LAYER_FACTOR = 0x100000001B3
"""By what the sum so far is multiplied for each further layer, modulo 2**64."""


def block_checksums(caches: Sequence[torch.Tensor], block_ids: torch.Tensor) -> torch.Tensor:
    """A sum over each block's bits in all layers of all caches, weighted by place; int64 [n].

    caches: int16 [layers, num_blocks, elements], one layer after the other; block_ids int64 [n]. Nothing waits for
    the device.
    """
    result: torch.Tensor = implementation("block_checksums", block_ids).block_checksums(caches, block_ids)
    return result
