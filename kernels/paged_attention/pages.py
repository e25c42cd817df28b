# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Where tokens lie: the addresses of a tile's keys and values in the cache, and how a tile is weighed."""

import triton
import triton.language as tl


@triton.jit
def token_offsets(
    table_ptr, start, end, block_stride, slot_stride, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Offsets [BLOCK_N] int64 of tokens from `start`, a multiple of BLOCK_N, in one head; those from `end` on are
    arbitrary, but of a block that exists."""
    tokens = start + tl.arange(0, BLOCK_N)
    if BLOCK_SIZE % BLOCK_N == 0:
        block = tl.load(table_ptr + start // BLOCK_SIZE).to(tl.int64)
        slots = start % BLOCK_SIZE + tl.arange(0, BLOCK_N)
        return block * block_stride + slots * slot_stride
    blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=tokens < end, other=0).to(tl.int64)
    return blocks * block_stride + (tokens % BLOCK_SIZE) * slot_stride


@triton.jit
def widened(q):
    """Queries in the type in which they meet keys of 8 bits: float16, which an e4m3 number becomes in one instruction
    for two of them, where bfloat16 takes a slow one for each; both hold it exactly."""
    if q.dtype == tl.bfloat16:
        q = q.to(tl.float16)
    return q
