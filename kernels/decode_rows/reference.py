"""Plain torch, without waiting for the device."""

import torch

from kernels.decode_rows import AT_LIMIT, IDLE, NOT_FINITE, RUNNING, STOPPED, DecodeInputs, RowColumns


def begin_decode(
    rows: RowColumns, batch_rows: torch.Tensor, block_size: int, cursor: torch.Tensor
) -> DecodeInputs:
    """See `kernels.decode_rows`."""
    cursor += 1
    active = rows.done[batch_rows] == 0
    num_tokens = rows.num_tokens[batch_rows]
    positions = torch.where(active, num_tokens - 1, 0)
    block_tables = rows.block_table[batch_rows]
    blocks = block_tables.gather(1, (positions // block_size)[:, None])[:, 0].to(torch.int64)
    return DecodeInputs(
        token_ids=rows.last_token[batch_rows],
        positions=positions,
        slots=torch.where(active, blocks * block_size + positions % block_size, -1),
        context_lens=torch.where(active, num_tokens, 0).to(torch.int32),
        block_tables=block_tables,
    )


def commit_tokens(
    rows: RowColumns,
    batch_rows: torch.Tensor,
    tokens: torch.Tensor,
    logits: torch.Tensor,
    results: torch.Tensor,
    cursor: torch.Tensor,
) -> None:
    """See `kernels.decode_rows`."""
    active = rows.done[batch_rows] == 0
    tokens = tokens.clamp(0, logits.shape[1] - 1)
    is_finite = torch.isfinite(logits.gather(1, tokens[:, None])[:, 0])
    num_tokens = rows.num_tokens[batch_rows] + 1
    stopped = (rows.stop_ids[batch_rows] == tokens[:, None]).any(dim=1)
    at_limit = num_tokens >= rows.max_tokens[batch_rows]
    status = torch.where(stopped, STOPPED, torch.where(at_limit, AT_LIMIT, RUNNING))
    status = torch.where(active, torch.where(is_finite, status, NOT_FINITE), IDLE)
    taken = active & is_finite
    rows.last_token[batch_rows] = torch.where(taken, tokens, rows.last_token[batch_rows])
    rows.num_tokens[batch_rows] = torch.where(taken, num_tokens, num_tokens - 1)
    rows.done[batch_rows] = (status != RUNNING).to(torch.int64)
    step = torch.stack((tokens, status)).to(torch.int32)
    results[:, :, : len(tokens)].index_copy_(0, cursor, step[None])
