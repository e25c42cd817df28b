# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Where tokens lie: the addresses of a tile's keys and values in the cache, and the type in which keys are met.

A load of keys whose address is itself loaded in the same turn of a loop takes two of the loop's stages, so that Triton
keeps fewer tiles in flight than asked for. Loops of more than two stages therefore look a tile's blocks up a turn
ahead; with two there is one tile to hold either way.
"""

import triton
import triton.language as tl


@triton.jit
def tile_blocks(
    table_ptr, start, end, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr, ONE_BLOCK: tl.constexpr
):
    """Blocks int32 of BLOCK_N tokens from `start`: one where all tiles lie in ONE_BLOCK each, else [BLOCK_N]; those of
    tokens from `end` on are arbitrary, but exist."""
    if ONE_BLOCK:
        blocks = tl.load(table_ptr + start // BLOCK_SIZE, mask=start < end, other=0)
    else:
        tokens = start + tl.arange(0, BLOCK_N)
        blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=tokens < end, other=0)
    return blocks


@triton.jit
def token_offsets(
    blocks, start, block_stride, slot_stride, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
):  # fmt: skip
    """Offsets [BLOCK_N] int64 in one head of the tokens whose `tile_blocks` are given."""
    if ONE_BLOCK:
        slots = start % BLOCK_SIZE + tl.arange(0, BLOCK_N)
    else:
        slots = (start + tl.arange(0, BLOCK_N)) % BLOCK_SIZE
    return blocks.to(tl.int64) * block_stride + slots * slot_stride


@triton.jit
def widened(q):
    """Queries in the type in which they meet keys of 8 bits: float16, which an e4m3 number becomes in one instruction
    for two of them, where bfloat16 takes a slow one for each; both hold it exactly."""
    if q.dtype == tl.bfloat16:
        q = q.to(tl.float16)
    return q
