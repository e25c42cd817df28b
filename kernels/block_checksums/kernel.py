# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: a program sums one layer of one block; sums modulo 2**64 do not depend on their order."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from kernels.block_checksums import LAYER_FACTOR

_BLOCK = 2048
_FACTOR = tl.constexpr(LAYER_FACTOR)


@triton.jit(do_not_specialize=["first_layer", "num_layers"])
def _block_checksum_kernel(
    cache_ptr, block_ids_ptr, out_ptr, layer_stride, block_stride, first_layer, num_layers, elements,
    BLOCK: tl.constexpr,
):  # fmt: skip
    index, layer = tl.program_id(0), tl.program_id(1)
    block = tl.load(block_ids_ptr + index)
    at = cache_ptr + layer.to(tl.int64) * layer_stride + block * block_stride
    total = tl.full((), 0, tl.int64)
    for start in range(0, elements, BLOCK):
        places = start + tl.arange(0, BLOCK)
        bits = tl.load(at + places, mask=places < elements, other=0).to(tl.int64)
        total += tl.sum(bits * (2 * (places + first_layer + layer) + 1).to(tl.int64), axis=0)
    for _ in range(first_layer + layer + 1, num_layers):
        total *= _FACTOR
    tl.atomic_add(out_ptr + index, total, sem="relaxed")


def block_checksums(caches: Sequence[torch.Tensor], block_ids: torch.Tensor) -> torch.Tensor:
    """See `kernels.block_checksums`. Layers and blocks may lie apart; elements of a block must not."""
    out = torch.zeros(len(block_ids), dtype=torch.int64, device=block_ids.device)
    num_layers, first_layer = sum(map(len, caches)), 0
    for cache in caches:
        if cache.stride(2) != 1:
            raise ValueError("the elements of a block must be adjacent")
        if len(block_ids):
            _block_checksum_kernel[(len(block_ids), len(cache))](
                cache, block_ids, out, cache.stride(0), cache.stride(1), first_layer, num_layers, cache.shape[2],
                BLOCK=_BLOCK, num_warps=4,
            )  # fmt: skip
        first_layer += len(cache)
    return out
