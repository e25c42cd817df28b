"""Scales for a KV cache of 8 bits, from what the model makes of some tokens."""

import torch

from gpu_worker.kv_cache import KvCache
from gpu_worker.models.decoder import AttentionInputs, Decoder
from kernels.kv_scales import KvScales, scale_of
from kernels.paged_attention import Chunks, query_tiles

_NUM_TOKENS = 2048
_BLOCK_SIZE = 16
_MARGIN = 4.0
"""How much larger numbers may get than those seen here. Two bits of the range cost no precision."""


@torch.inference_mode()
def calibrate(
    decoder: Decoder, max_model_len: int, dtype: torch.dtype, device: torch.device
) -> list[KvScales]:
    """Each layer's scales: random tokens of the vocabulary are prefilled into a cache of `dtype`, which is looked at.

    The sizes of keys and values come from weights and norms more than from the text, and a scale has to be right
    within some powers of two only (`kernels.kv_scales`), so random tokens do.
    """
    num_tokens = min(_NUM_TOKENS, max_model_len)
    num_blocks = -(-num_tokens // _BLOCK_SIZE)
    cache = KvCache(decoder.config, num_blocks, _BLOCK_SIZE, dtype, device)
    generator = torch.Generator().manual_seed(0)
    token_ids = torch.randint(0, decoder.config.vocab_size, (num_tokens,), generator=generator).to(device)
    positions = torch.arange(num_tokens, device=device)
    tiles = [torch.from_numpy(array.copy()).to(device) for array in query_tiles([num_tokens])]

    def numbers(value: int) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.int32, device=device)

    plan = decoder.plan_attention(
        torch.arange(num_blocks, dtype=torch.int32, device=device)[None],
        numbers(num_tokens),
        0,
        Chunks(numbers(num_tokens), numbers(0), *tiles),
    )
    decoder.forward(token_ids, AttentionInputs(positions, positions, plan), cache)
    return [
        KvScales(_scales(keys), _scales(values))
        for keys, values in zip(cache.keys, cache.values, strict=True)
    ]


def _scales(cache: torch.Tensor) -> torch.Tensor:
    """Of the heads of one layer's keys or values, float32 [kv_heads]."""
    return scale_of(cache.abs().amax(dim=(0, 2, 3)).float() * _MARGIN)
