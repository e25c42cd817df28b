"""The KV cache: for each layer, keys and values in blocks."""

import torch

from gpu_worker.models.architectures import DecoderConfig


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

    @staticmethod
    def block_bytes(config: DecoderConfig, block_size: int, dtype_bytes: int) -> int:
        """Bytes of one block over all layers, keys and values."""
        return 2 * config.num_layers * config.num_kv_heads * block_size * config.head_dim * dtype_bytes
