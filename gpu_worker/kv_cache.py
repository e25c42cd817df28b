"""The KV cache: for each layer, keys and values in blocks."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_worker.models.architectures import DecoderConfig
from kernels.kv_scales import FP8, KvScales

_LAYER_FACTOR = 0x100000001B3


class KvCache:
    """keys[layer] and values[layer] are [num_blocks, kv_heads, block_size, head_dim]; in FP8 if they have scales."""

    def __init__(
        self,
        config: DecoderConfig,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        scales: Sequence[KvScales] | None = None,
    ) -> None:
        shape = (config.num_layers, num_blocks, config.num_kv_heads, block_size, config.head_dim)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.scales: Sequence[KvScales | None] = scales or [None] * config.num_layers
        stored = FP8 if scales else dtype
        self.keys = torch.zeros(shape, dtype=stored, device=device).unbind()
        self.values = torch.zeros(shape, dtype=stored, device=device).unbind()

    def checksums(self, block_ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """A sum over each block's bits in all layers, weighted by place; block_ids [n], returns [n]."""
        blocks = torch.from_numpy(block_ids.astype(np.int64)).to(self.keys[0].device)
        total = torch.zeros(len(blocks), dtype=torch.int64, device=blocks.device)
        for layer, cache_bits in enumerate(self._bits()):
            bits = cache_bits[blocks].reshape(len(blocks), -1).to(torch.int64)
            # Odd multipliers, so that no change of one place is lost modulo 2**64.
            places = torch.arange(bits.shape[1], device=blocks.device) * 2 + 2 * layer + 1
            total = total * _LAYER_FACTOR + (bits * places).sum(dim=1)
        return total.cpu().numpy()

    def _bits(self) -> list[torch.Tensor]:
        """All caches as int16, so that nothing depends on what torch can do with 8-bit floats."""
        return [cache.view(torch.int16) for cache in (*self.keys, *self.values)]

    @staticmethod
    def block_bytes(config: DecoderConfig, block_size: int, dtype_bytes: int) -> int:
        """Bytes of one block over all layers, keys and values."""
        return 2 * config.num_layers * config.num_kv_heads * block_size * config.head_dim * dtype_bytes
