# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
"""Gluon, for Hopper: what a program works on, and the warps that fetch it into shared memory.

A program takes an item, a tile of queries for one head, in each turn. What tells where an item lies is loaded turns
ahead, so that no warp waits for it. Loops carry numbers as they were loaded and nothing made of them: Triton 3.6 and
3.7 may take a sum that is carried from turn to turn for the first turn's (its `triton-loop-aware-cse`).
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

COLUMNS = gl.constexpr(64)
"""Columns of a piece of shared memory: 128 bytes, which is as far as its addresses are swizzled. A product's operand
[rows, d] is d / 64 such strips, one after the other; a page fills `block_size` rows of each."""
QUERY_ROWS = gl.constexpr(16)
"""Rows of the pieces in which queries are fetched."""
NO_PAGE = gl.constexpr(0x7FFFFFF0)
"""In place of a block, and of the row where it begins: the copy engine gives zeros for rows past a tensor's end."""
_NEVER = gl.constexpr(0x7FFFFFFF)


@gluon.jit
def item_of(turn):
    """Programs go through the items to and fro: the first ones see most, and all programs shall get as much."""
    program = gl.program_id(0)
    programs = gl.num_programs(0)
    return turn * programs + gl.where(turn & 1 == 0, program, programs - 1 - program)


@gluon.jit
def num_turns(work, NUM_HEADS: gl.constexpr):
    """Of each program; in the last there may be nothing to do."""
    return gl.cdiv(work[5] * NUM_HEADS, gl.num_programs(0))


@gluon.jit
def load_tile(turn, work, NUM_HEADS: gl.constexpr):
    """Chunk of a turn's item, and its first query in the chunk; where there is no item, one past any chunk's end."""
    tile = item_of(turn) // NUM_HEADS
    exists = tile < work[5]
    return gl.load(work[3] + tile, mask=exists, other=0), gl.load(work[4] + tile, mask=exists, other=_NEVER)


@gluon.jit
def load_lengths(chunk, work):
    """Queries of a chunk, and tokens of its context."""
    return gl.load(work[1] + chunk), gl.load(work[0] + work[6] + chunk)


@gluon.jit
def load_first_row(chunk, work):
    """Of a chunk's queries in the batch."""
    return gl.load(work[2] + chunk)


@gluon.jit
def seen_tiles(start, query_len, context_len, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    """Tiles of BLOCK_N tokens that an item's queries see, with those seen in part."""
    return gl.cdiv(gl.minimum(context_len, context_len - query_len + start + BLOCK_M), BLOCK_N)


@gluon.jit
def look_up(tables_ptr, at, left, PAGES: gl.constexpr):
    """Blocks of a tile's pages, of which `left` exist, from place `at` of the block tables."""
    blocks = ()
    for page in gl.static_range(PAGES):
        block = gl.load(tables_ptr + at + page, mask=page < left, other=NO_PAGE)
        blocks = blocks + (block,)  # noqa: RUF005, Triton knows no other way
    return blocks


@gluon.jit
def fetch_tokens(
    pieces, full, empty, pages, first_row, tables, work, NUM_HEADS: gl.constexpr, KV_HEADS: gl.constexpr,
    BLOCK_SIZE: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, STRIPS: gl.constexpr,
):  # fmt: skip
    """One warp: keys, or values, whose cache begins at `first_row` of `pages`; tile after tile, page after page."""
    tables_ptr, table_stride = tables
    PAGES: gl.constexpr = BLOCK_N // BLOCK_SIZE
    TILE_BYTES: gl.constexpr = BLOCK_N * STRIPS * COLUMNS * 2
    count = 0
    chunk, start = load_tile(0, work, NUM_HEADS)
    query_len, context_len = load_lengths(chunk, work)
    next_chunk, next_start = load_tile(1, work, NUM_HEADS)
    blocks = look_up(tables_ptr, (work[6] + chunk) * table_stride, gl.cdiv(context_len, BLOCK_SIZE), PAGES)
    for turn in range(num_turns(work, NUM_HEADS)):
        next_len, next_context = load_lengths(next_chunk, work)
        later_chunk, later_start = load_tile(turn + 2, work, NUM_HEADS)
        if start < query_len:
            kv_head = item_of(turn) % NUM_HEADS // (NUM_HEADS // KV_HEADS)
            head_row = first_row + kv_head * BLOCK_SIZE
            table = (work[6] + chunk) * table_stride
            num_pages = gl.cdiv(context_len, BLOCK_SIZE)
            last = seen_tiles(start, query_len, context_len, BLOCK_M, BLOCK_N)
            for tile in range(last):
                ends = tile + 1 == last
                next_blocks = look_up(
                    tables_ptr,
                    gl.where(ends, (work[6] + next_chunk) * table_stride, table + (tile + 1) * PAGES),
                    gl.where(ends, gl.cdiv(next_context, BLOCK_SIZE), num_pages - (tile + 1) * PAGES),
                    PAGES,
                )
                stage = count & 1
                mbarrier.wait(empty.index(stage), ((count >> 1) & 1) ^ 1)
                mbarrier.expect(full.index(stage), TILE_BYTES)
                for page in gl.static_range(PAGES):
                    block = blocks[page]
                    row = gl.where(block == NO_PAGE, NO_PAGE, block * (KV_HEADS * BLOCK_SIZE) + head_row)
                    for strip in gl.static_range(STRIPS):
                        piece = pieces.index((stage * STRIPS + strip) * PAGES + page)
                        tma.async_copy_global_to_shared(
                            pages, [row, strip * COLUMNS], full.index(stage), piece
                        )
                blocks = next_blocks
                count += 1
        else:
            blocks = look_up(
                tables_ptr, (work[6] + next_chunk) * table_stride, gl.cdiv(next_context, BLOCK_SIZE), PAGES
            )
        chunk = next_chunk
        start = next_start
        query_len = next_len
        context_len = next_context
        next_chunk = later_chunk
        next_start = later_start


@gluon.jit
def fetch_queries(
    pieces, full, empty, q_ptr, q_row_stride, work, NUM_HEADS: gl.constexpr, BLOCK_M: gl.constexpr,
    STRIPS: gl.constexpr,
):  # fmt: skip
    """One warp: the queries of item after item; past a chunk's end zeros."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [1, 1], [1, 0])
    PARTS: gl.constexpr = BLOCK_M // QUERY_ROWS
    members = gl.arange(0, QUERY_ROWS, layout=gl.SliceLayout(1, LAYOUT))
    columns = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, LAYOUT))
    offsets = (members * q_row_stride)[:, None] + columns[None, :]
    count = 0
    for turn in range(num_turns(work, NUM_HEADS)):
        chunk, start = load_tile(turn, work, NUM_HEADS)
        query_len, _ = load_lengths(chunk, work)
        row = gl.cast(load_first_row(chunk, work) + start, gl.int64)
        if start < query_len:
            head = item_of(turn) % NUM_HEADS
            at = q_ptr + row * q_row_stride + head * (STRIPS * COLUMNS)
            left = query_len - start
            stage = count & 1
            mbarrier.wait(empty.index(stage), ((count >> 1) & 1) ^ 1)
            # A loop, because this warp has few registers.
            for part in range(PARTS):
                mask = (members < left)[:, None]
                for strip in gl.static_range(STRIPS):
                    piece = pieces.index((stage * STRIPS + strip) * PARTS + part)
                    async_copy.async_copy_global_to_shared(piece, at + offsets + strip * COLUMNS, mask=mask)
                at += QUERY_ROWS * q_row_stride
                left -= QUERY_ROWS
            async_copy.mbarrier_arrive(full.index(stage), increment_count=False)
            count += 1
