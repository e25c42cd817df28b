"""The KV cache: for each layer, keys and values in blocks."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_worker.models.architectures import DecoderConfig
from kernels.block_checksums import block_checksums
from kernels.kv_scales import FP8, KvScales


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
        keys, values = (torch.zeros(shape, dtype=stored, device=device) for _ in range(2))
        self.keys, self.values = keys.unbind(), values.unbind()
        # As int16, so that nothing depends on what torch can do with 8-bit floats.
        self._bits = [cache.view(torch.int16).flatten(2) for cache in (keys, values)]

    def checksums(self, block_ids: NDArray[np.int32]) -> "PendingChecksums":
        """Of what blocks hold after the work handed to the device so far; waits for nothing."""
        return PendingChecksums(self._bits, block_ids)

    @staticmethod
    def block_bytes(config: DecoderConfig, block_size: int, dtype_bytes: int) -> int:
        """Bytes of one block over all layers, keys and values."""
        return 2 * config.num_layers * config.num_kv_heads * block_size * config.head_dim * dtype_bytes


class PendingChecksums:
    """Checksums [n] that the device is still to compute, or computes."""

    def __init__(self, caches: Sequence[torch.Tensor], block_ids: NDArray[np.int32]) -> None:
        device, ids = caches[0].device, torch.from_numpy(block_ids.astype(np.int64))
        self._done = torch.cuda.Event(blocking=True) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        if self._done is None:
            self._sums = block_checksums(caches, ids)
            return
        sums = block_checksums(caches, ids.pin_memory().to(device, non_blocking=True))
        self._sums = torch.empty(sums.shape, dtype=sums.dtype, pin_memory=True)
        self._sums.copy_(sums, non_blocking=True)
        self._done.record()

    def wait(self) -> NDArray[np.int64]:
        """The checksums; for a thread that may sleep."""
        if self._done is not None:
            self._done.synchronize()
        return self._sums.numpy()
