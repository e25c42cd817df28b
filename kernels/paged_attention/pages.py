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


@triton.jit
def _fetch_ahead(address, num_bytes, wanted):
    """Ask for bytes to come to the second-level cache, where wanted; nobody waits for them (PTX ISA, 9.7.9)."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred wanted;
        setp.ne.b32 wanted, $3, 0;
        @wanted cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.b32 $0, 0;
        }""",
        "=r,l,r,r", [address.to(tl.int64), num_bytes, wanted.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def fetch_tokens_ahead(
    table_ptr, k_ptr, v_ptr, start, end, k_block_stride, v_block_stride, HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Have keys and values of up to TOKENS tokens from `start`, of one head, come to the second-level cache.

    `start` is a multiple of 16, as are BLOCK_SIZE and TOKENS; a head's tokens lie one behind the other in their block.
    """
    RUN: tl.constexpr = 16
    # A run of keys or of values for each thread.
    runs = tl.arange(0, 64)
    tokens = start + runs // 2 * RUN
    wanted = (runs < 2 * (TOKENS // RUN)) & (tokens < end)
    blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=wanted, other=0).to(tl.int64)
    slots = tokens % BLOCK_SIZE * HEAD_DIM
    keys, values = k_ptr + (blocks * k_block_stride + slots), v_ptr + (blocks * v_block_stride + slots)
    num_bytes = tl.full([64], RUN * HEAD_DIM * k_ptr.dtype.element_ty.primitive_bitwidth // 8, tl.int32)
    _fetch_ahead(tl.where(runs % 2 == 0, keys, values), num_bytes, wanted)
