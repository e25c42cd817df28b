"""How many KV blocks there are."""

import os
import re

from gpu_worker.kv_cache import KvCache
from gpu_worker.models.architectures import DecoderConfig
from quire.errors import InvalidRequest

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str) -> int:
    """`2GiB`, `500 MB` or `1073741824` as a number of bytes. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size such as 2GiB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def num_kv_blocks(
    config: DecoderConfig, dtype_bytes: int, *, block_size: int, max_rows: int, max_model_len: int, asked: str
) -> int:
    """Blocks for `asked` bytes, or a default that suits a CPU.

    Raises InvalidRequest where not even one sequence of max_model_len tokens fits; the message says what would.
    """
    block_bytes = KvCache.block_bytes(config, block_size, dtype_bytes)
    blocks_per_sequence = -(-max_model_len // block_size)
    if asked:
        num_blocks = parse_bytes(asked) // block_bytes
    else:
        wanted = max(blocks_per_sequence, max_rows * -(-blocks_per_sequence // 4))
        num_blocks = min(wanted, _free_bytes() // 4 // block_bytes)
    if num_blocks < blocks_per_sequence:
        needed = blocks_per_sequence * block_bytes
        raise InvalidRequest(
            f"{num_blocks * block_bytes / 2**20:.0f} MiB of KV cache hold {num_blocks * block_size} tokens, fewer than "
            f"max_model_len, {max_model_len}: give kv_cache_memory {needed / 2**20:.0f} MiB or more, or lower "
            "max_model_len",
            param="kv_cache_memory",
        )
    return num_blocks


def _free_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
