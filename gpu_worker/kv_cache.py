"""The KV cache: for each layer, keys and values in blocks."""

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_worker.models.architectures import DecoderConfig

_LAYER_FACTOR = 0x100000001B3


class KvCache:
    """keys[layer] and values[layer] are [num_blocks, kv_heads, block_size, head_dim]."""

    def __init__(
        self,
        config: DecoderConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (config.num_layers, num_blocks, config.num_kv_heads, block_size, config.head_dim)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.keys = torch.zeros(shape, dtype=dtype, device=device).unbind()
        self.values = torch.zeros(shape, dtype=dtype, device=device).unbind()

    def copy_blocks(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy whole blocks, in every layer; both int64 [n]."""
        for cache in (*self.keys, *self.values):
            cache[targets] = cache[sources]

    def checksums(self, block_ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """A sum over each block's bits in all layers, weighted by place; block_ids [n], returns [n]."""
        blocks = torch.from_numpy(block_ids.astype(np.int64)).to(self.keys[0].device)
        total = torch.zeros(len(blocks), dtype=torch.int64, device=blocks.device)
        for layer, cache in enumerate((*self.keys, *self.values)):
            bits = cache[blocks].reshape(len(blocks), -1).view(torch.int16).to(torch.int64)
            # Odd multipliers, so that no change of one place is lost modulo 2**64.
            places = torch.arange(bits.shape[1], device=blocks.device) * 2 + 2 * layer + 1
            total = total * _LAYER_FACTOR + (bits * places).sum(dim=1)
        return total.cpu().numpy()

    @staticmethod
    def block_bytes(config: DecoderConfig, block_size: int, dtype_bytes: int) -> int:
        """Bytes of one block over all layers, keys and values."""
        return 2 * config.num_layers * config.num_kv_heads * block_size * config.head_dim * dtype_bytes
