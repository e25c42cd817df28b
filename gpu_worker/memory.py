"""How many KV blocks there are."""

import os
import re
from math import prod

from gpu_worker.kv_cache import KvCache
from gpu_worker.models.architectures import DecoderConfig
from gpu_worker.models.decoder import parameter_shapes
from quire.errors import InvalidRequest

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
GPU_ROWS = (512, 1024)
"""Sequences at once: of which `gpu_rows` chooses."""
_USUAL_TOKENS = 512


def parse_bytes(text: str) -> int:
    """`2GiB`, `500 MB` or `1073741824` as a number of bytes. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size such as 2GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def cpu_budget(
    config: DecoderConfig, dtype_bytes: int, *, block_size: int, max_rows: int, max_model_len: int
) -> int:
    """Bytes of KV cache that suit a CPU: every row at a quarter of max_model_len, if that much memory is free."""
    block_bytes = KvCache.block_bytes(config, block_size, dtype_bytes)
    blocks_per_sequence = -(-max_model_len // block_size)
    wanted = max(blocks_per_sequence, max_rows * -(-blocks_per_sequence // 4))
    return min(wanted * block_bytes, _free_bytes() // 4)


def gpu_rows(config: DecoderConfig, dtype_bytes: int, kv_dtype_bytes: int, gpu_bytes: int) -> int:
    """Sequences that run at once on a GPU with so much memory to use: the larger number if each finds room there for
    the KV of a usual request, beside the weights."""
    weights = dtype_bytes * sum(prod(shape) for shape in parameter_shapes(config).values())
    tokens = (gpu_bytes - weights) // KvCache.block_bytes(config, 1, kv_dtype_bytes)
    few, many = GPU_ROWS
    return many if tokens >= many * _USUAL_TOKENS else few


def num_kv_blocks(budget: int, block_bytes: int, *, block_size: int, max_model_len: int) -> int:
    """Blocks that `budget` bytes hold.

    Raises InvalidRequest where not even one sequence of max_model_len tokens fits; the message says what would help.
    """
    num_blocks = max(0, budget) // block_bytes
    blocks_per_sequence = -(-max_model_len // block_size)
    if num_blocks < blocks_per_sequence:
        needed = blocks_per_sequence * block_bytes
        raise InvalidRequest(
            f"{budget / 2**20:.0f} MiB of KV cache hold {num_blocks * block_size} tokens, fewer than max_model_len, "
            f"{max_model_len}: give kv_cache_memory {needed / 2**20:.0f} MiB or more, or lower max_model_len; on a "
            "GPU, raise gpu_memory_utilization, or lower max_step_tokens and max_rows, which need memory too",
            param="kv_cache_memory",
        )
    return num_blocks


def _free_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
