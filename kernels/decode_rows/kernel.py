# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Triton: one program per row of the batch, in each of two launches."""

import torch
import triton
import triton.language as tl

from kernels.decode_rows import AT_LIMIT, IDLE, NOT_FINITE, RUNNING, STOPPED, DecodeInputs, RowColumns

_COPY_BLOCK = 1024


@triton.jit(do_not_specialize=["num_rows"])
def _begin_kernel(
    batch_rows_ptr,
    last_token_ptr,
    num_tokens_ptr,
    done_ptr,
    block_table_ptr,
    block_table_stride,
    cursor_ptr,
    token_ids_ptr,
    positions_ptr,
    slots_ptr,
    context_lens_ptr,
    out_tables_ptr,
    num_rows,
    table_width,
    BLOCK_SIZE: tl.constexpr,
    COPY_BLOCK: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    if entry == 0:
        tl.store(cursor_ptr, tl.load(cursor_ptr) + 1)
    if entry < num_rows:
        row = tl.load(batch_rows_ptr + entry)
        active = tl.load(done_ptr + row) == 0
        context_len = tl.where(active, tl.load(num_tokens_ptr + row), 0)
        position = tl.maximum(context_len - 1, 0)
        table_ptr = block_table_ptr + row * block_table_stride
        block = tl.load(table_ptr + position // BLOCK_SIZE).to(tl.int64)
        slot = tl.where(active, block * BLOCK_SIZE + position % BLOCK_SIZE, -1)
        tl.store(token_ids_ptr + entry, tl.load(last_token_ptr + row))
        tl.store(positions_ptr + entry, position)
        tl.store(slots_ptr + entry, slot)
        tl.store(context_lens_ptr + entry, context_len.to(tl.int32))
        num_blocks = (context_len + BLOCK_SIZE - 1) // BLOCK_SIZE
        for start in range(0, num_blocks, COPY_BLOCK):
            columns = start + tl.arange(0, COPY_BLOCK)
            blocks = tl.load(table_ptr + columns, mask=columns < num_blocks, other=0)
            tl.store(out_tables_ptr + entry * table_width + columns, blocks, mask=columns < num_blocks)


@triton.jit
def _commit_kernel(
    batch_rows_ptr,
    tokens_ptr,
    logits_ptr,
    logits_stride,
    vocab_size,
    last_token_ptr,
    num_tokens_ptr,
    max_tokens_ptr,
    done_ptr,
    stop_ids_ptr,
    stop_ids_stride,
    num_stop_ids,
    results_ptr,
    step_stride,
    status_stride,
    cursor_ptr,
    RUNNING: tl.constexpr,
    STOPPED: tl.constexpr,
    AT_LIMIT: tl.constexpr,
    IDLE: tl.constexpr,
    NOT_FINITE: tl.constexpr,
    STOP_BLOCK: tl.constexpr,
):
    entry = tl.program_id(0).to(tl.int64)
    row = tl.load(batch_rows_ptr + entry)
    active = tl.load(done_ptr + row) == 0
    token = tl.minimum(tl.maximum(tl.load(tokens_ptr + entry), 0), vocab_size - 1)
    logit = tl.load(logits_ptr + entry * logits_stride + token).to(tl.float32)
    # NaN is not below anything either.
    is_finite = tl.abs(logit) < float("inf")
    columns = tl.arange(0, STOP_BLOCK)
    stop_ids = tl.load(
        stop_ids_ptr + row * stop_ids_stride + columns, mask=columns < num_stop_ids, other=-1
    ).to(tl.int64)
    stopped = tl.sum((stop_ids == token).to(tl.int32), axis=0) > 0
    num_tokens = tl.load(num_tokens_ptr + row) + 1
    at_limit = num_tokens >= tl.load(max_tokens_ptr + row)
    status = tl.where(stopped, STOPPED, tl.where(at_limit, AT_LIMIT, RUNNING))
    status = tl.where(active, tl.where(is_finite, status, NOT_FINITE), IDLE)
    taken = active & is_finite
    tl.store(last_token_ptr + row, token, mask=taken)
    tl.store(num_tokens_ptr + row, num_tokens, mask=taken)
    tl.store(done_ptr + row, 1, mask=active & (status != RUNNING))
    result_ptr = results_ptr + tl.load(cursor_ptr) * step_stride + entry
    tl.store(result_ptr, token.to(tl.int32))
    tl.store(result_ptr + status_stride, status.to(tl.int32))


def begin_decode(
    rows: RowColumns, batch_rows: torch.Tensor, block_size: int, cursor: torch.Tensor
) -> DecodeInputs:
    """See `kernels.decode_rows`. Columns are contiguous; only the blocks in use are copied."""
    num_rows, table_width = len(batch_rows), rows.block_table.shape[1]
    token_ids, positions, slots = torch.empty((3, num_rows), dtype=torch.int64, device=batch_rows.device)
    context_lens = torch.empty(num_rows, dtype=torch.int32, device=batch_rows.device)
    block_tables = torch.empty((num_rows, table_width), dtype=torch.int32, device=batch_rows.device)
    _begin_kernel[(max(num_rows, 1),)](
        batch_rows, rows.last_token, rows.num_tokens, rows.done, rows.block_table, rows.block_table.stride(0),
        cursor, token_ids, positions, slots, context_lens, block_tables, num_rows, table_width,
        BLOCK_SIZE=block_size, COPY_BLOCK=min(_COPY_BLOCK, triton.next_power_of_2(table_width)),
    )  # fmt: skip
    return DecodeInputs(token_ids, positions, slots, context_lens, block_tables)


def commit_tokens(
    rows: RowColumns,
    batch_rows: torch.Tensor,
    tokens: torch.Tensor,
    logits: torch.Tensor,
    results: torch.Tensor,
    cursor: torch.Tensor,
) -> None:
    """See `kernels.decode_rows`. Columns are contiguous, and so are the entries of one row of logits."""
    if logits.stride(1) != 1:
        raise ValueError("the logits of a row must be adjacent")
    _commit_kernel[(len(batch_rows),)](
        batch_rows, tokens, logits, logits.stride(0), logits.shape[1], rows.last_token, rows.num_tokens,
        rows.max_tokens, rows.done, rows.stop_ids, rows.stop_ids.stride(0), rows.stop_ids.shape[1],
        results, results.stride(0), results.stride(1), cursor,
        RUNNING=RUNNING, STOPPED=STOPPED, AT_LIMIT=AT_LIMIT, IDLE=IDLE, NOT_FINITE=NOT_FINITE,
        STOP_BLOCK=triton.next_power_of_2(rows.stop_ids.shape[1]),
    )  # fmt: skip
