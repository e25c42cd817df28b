"""The two ends of a decode step: what the model reads of each row, and what the sampled token changes in it.

The rows' state stays on the device, in columns [rows]; a step works on `batch_rows`, indices into the columns. A done
row is a no-op: its context is empty, its KV goes nowhere, its columns stay as they are. A batch is filled up to a
fixed size by naming a row that is always done. Floor: one read of the block tables' entries in use. Measured on an
H200: 2.3 and 2.5 us for one row, 2.7 each for 256, nearly all latency (`benchmarks.decode_profile`).
"""

from dataclasses import dataclass

import torch

from kernels.dispatch import implementation

RUNNING, STOPPED, AT_LIMIT = 0, 1, 2
IDLE, NOT_FINITE = -1, -2
"""A row's status after a step: IDLE was done before it; NOT_FINITE got logits that are not numbers, and is done."""


@dataclass(frozen=True, slots=True)
class RowColumns:
    """The state of rows that a step reads and writes."""

    last_token: torch.Tensor
    """int64 [rows]: the newest token, whose KV is not computed yet."""
    num_tokens: torch.Tensor
    """int64 [rows]: tokens known, the newest included."""
    max_tokens: torch.Tensor
    """int64 [rows]: the row is done when it has that many."""
    done: torch.Tensor
    """int64 [rows]: 0 while it runs."""
    stop_ids: torch.Tensor
    """int32 [rows, most stop tokens], filled up with -1."""
    block_table: torch.Tensor
    """int32 [rows, most blocks]."""


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """What the model reads of n rows that decode one token each."""

    token_ids: torch.Tensor
    """int64 [n]."""
    positions: torch.Tensor
    """int64 [n]; 0 for a row that is done."""
    slots: torch.Tensor
    """int64 [n]: block * block_size + offset of the token's KV; -1 for a row that is done."""
    context_lens: torch.Tensor
    """int32 [n]: tokens that attention sees, this one included; 0 for a row that is done."""
    block_tables: torch.Tensor
    """int32 [n, most blocks]; entries past the context are arbitrary."""


def begin_decode(
    rows: RowColumns, batch_rows: torch.Tensor, block_size: int, cursor: torch.Tensor
) -> DecodeInputs:
    """Read the batch's rows; batch_rows int64 [n], n may be 0. Moves `cursor`, int64 [1], to the step's results."""
    inputs: DecodeInputs = implementation("decode_rows", batch_rows).begin_decode(
        rows, batch_rows, block_size, cursor
    )
    return inputs


def commit_tokens(
    rows: RowColumns,
    batch_rows: torch.Tensor,
    tokens: torch.Tensor,
    logits: torch.Tensor,
    results: torch.Tensor,
    cursor: torch.Tensor,
) -> None:
    """Keep the sampled tokens in their rows, and write tokens and statuses to the step's results.

    tokens int64 [n] were drawn from logits [n, vocab] (any float dtype), of which only the drawn one is looked at: a
    hidden state that is not finite makes all of its logits so. results int32 [steps, 2, at least n]: entry [cursor]
    gets the tokens and the statuses. Rows appear once in batch_rows, save for one that is done.
    """
    implementation("decode_rows", batch_rows).commit_tokens(rows, batch_rows, tokens, logits, results, cursor)
