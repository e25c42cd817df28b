"""What the ends of a step do with rows, and checksums of blocks."""

from collections.abc import Iterator

import torch

from kernels.bench.cases import Case, Sizes
from kernels.block_checksums import block_checksums
from kernels.decode_rows import RowColumns, begin_decode, commit_tokens

_STOP_IDS = 8
_LAYERS, _CHECKED_BLOCKS = 2, 64


def begin_case(rows: int, context: int, block_size: int, device: str) -> Case:
    """Reading rows that decode, and the blocks of their contexts."""
    columns, every_row, cursor = _rows(rows, context, block_size, device)
    return Case(
        "rows: begin", rows, 2 * columns.block_table.nbytes, 0,
        [lambda: begin_decode(columns, every_row, block_size, cursor.zero_())], f"context {context}",
    )  # fmt: skip


def commit_case(sizes: Sizes, rows: int, block_size: int, device: str) -> Case:
    """Keeping what was sampled."""
    columns, every_row, cursor = _rows(rows, 1, block_size, device)
    logits = torch.randn(rows, sizes.vocab, device=device).bfloat16()
    results = torch.zeros(1, 2, rows, dtype=torch.int32, device=device)
    return Case(
        "rows: commit", rows, rows * (7 * 8 + _STOP_IDS * 4), 0,
        [lambda: commit_tokens(columns, every_row, every_row, logits, results, cursor.zero_())],
    )  # fmt: skip


def _rows(
    rows: int, context: int, block_size: int, device: str
) -> tuple[RowColumns, torch.Tensor, torch.Tensor]:
    """Rows that never end, all of them, and a cursor."""

    def column(value: int) -> torch.Tensor:
        return torch.full((rows,), value, dtype=torch.int64, device=device)

    columns = RowColumns(
        last_token=column(1), num_tokens=column(context), max_tokens=column(2**40), done=column(0),
        stop_ids=torch.full((rows, _STOP_IDS), -1, dtype=torch.int32, device=device),
        block_table=torch.zeros(rows, -(-context // block_size), dtype=torch.int32, device=device),
    )  # fmt: skip
    every_row = torch.arange(rows, device=device)
    return columns, every_row, torch.zeros(1, dtype=torch.int64, device=device)


def checksum_cases(sizes: Sizes, block_size: int, device: str) -> Iterator[Case]:
    """Some blocks of a cache of few layers."""
    elements = sizes.kv_heads * block_size * sizes.head_dim
    caches = [
        torch.randint(-1000, 1000, (_LAYERS, _CHECKED_BLOCKS, elements), device=device).short()
        for _ in range(2)
    ]
    ids = torch.randperm(_CHECKED_BLOCKS, device=device)
    num_bytes = sum(cache.nbytes for cache in caches)
    yield Case(
        "block checksums", _CHECKED_BLOCKS, num_bytes, 0, [lambda: block_checksums(caches, ids)], "blocks"
    )
