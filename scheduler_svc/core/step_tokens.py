"""A worker's StepResult, checked against the rows it speaks of, and taken into their sequences."""

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from quire.packing import unpack_int32, unpack_uint8, unpack_uint32
from quire.v1 import scheduler_pb2, types_pb2, worker_pb2
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.row_table import NOBODY
from scheduler_svc.core.sequence import Sequence
from scheduler_svc.core.token_batch import StepColumns

# A worker ends rows by itself in these ways only; a row that fails is among the result's errors.
_LAST_REASON = max(types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_LENGTH)


class ProtocolError(Exception):
    """A worker said something that the step protocol does not allow; its stream must be given up."""


@dataclass(slots=True)
class StepTokens:
    """The sampled tokens of one step, in columns of n entries, one per row of the current epoch."""

    rows: NDArray[np.uint32]  # [n]
    counts: NDArray[np.uint32] | None  # [n]; None: one each
    token_ids: NDArray[np.int32]  # [sum(counts)]
    finish_reasons: NDArray[np.uint8]  # [n]


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one retired command amounted to."""

    step_s: float
    prefill_tokens: int
    generated_tokens: int
    intervals_s: NDArray[np.float64]
    """Seconds per token since each sequence's last one, [m]; sequences with a first token are left out."""
    interval_tokens: NDArray[np.int64]
    """How many tokens each interval stands for, [m]."""


def read_result(replica: Replica, result: worker_pb2.StepResult) -> StepTokens:
    """Unpack and check a result; entries of dead epochs and of free rows are left out. Raises ProtocolError."""
    if not replica.in_flight or result.step_id != replica.in_flight[0].step_id:
        expected = replica.in_flight[0].step_id if replica.in_flight else "none"
        raise ProtocolError(f"result of step {result.step_id}, expected {expected}")
    try:
        rows, epochs = unpack_uint32(result.rows), unpack_uint32(result.epochs)
        counts = unpack_uint32(result.num_tokens) if result.num_tokens else None
        token_ids = unpack_int32(result.token_ids)
        finish_reasons = unpack_uint8(result.finish_reasons)
    except ValueError as error:
        raise ProtocolError(f"step {result.step_id}: a column's length is wrong: {error}") from None
    num_tokens = len(rows) if counts is None else int(counts.sum())
    columns_agree = len(rows) == len(epochs) == len(finish_reasons) and len(token_ids) == num_tokens
    if not columns_agree or (counts is not None and len(counts) != len(rows)):
        raise ProtocolError(f"step {result.step_id}: columns have different lengths")
    if not isfinite(result.step_s) or result.step_s < 0.0:
        raise ProtocolError(f"step {result.step_id}: it took {result.step_s} seconds")
    step = StepTokens(rows, counts, token_ids, finish_reasons)
    if len(rows) == 0:
        return step
    _check_values(replica, step, result.step_id)
    alive = (replica.rows.epochs[rows] == epochs) & replica.rows.taken[rows]
    if not bool(alive.all()):
        token_ids = token_ids[alive if counts is None else np.repeat(alive, counts)]
        rows, finish_reasons = rows[alive], finish_reasons[alive]
        counts = None if counts is None else counts[alive]
        step = StepTokens(rows, counts, token_ids, finish_reasons)
    return step


def _check_values(replica: Replica, step: StepTokens, step_id: int) -> None:
    """Raise ProtocolError for values that would break what follows; `step` has at least one entry."""
    if int(step.rows.max()) >= replica.rows.max_rows:
        raise ProtocolError(f"step {step_id}: row {int(step.rows.max())} does not exist")
    if int(np.bincount(step.rows).max()) > 1:
        raise ProtocolError(f"step {step_id}: a row occurs twice")
    if step.counts is not None and int(step.counts.min()) < 1:
        raise ProtocolError(f"step {step_id}: a row without tokens")
    lowest, highest = int(step.token_ids.min()), int(step.token_ids.max())
    if lowest < 0 or highest >= replica.description.model.vocab_size:
        raise ProtocolError(f"step {step_id}: a token id is outside the vocabulary")
    if int(step.finish_reasons.max()) > _LAST_REASON:
        raise ProtocolError(f"step {step_id}: a row ended in way {int(step.finish_reasons.max())}")


def take_tokens(replica: Replica, step: StepTokens) -> None:
    """Append each row's tokens to its sequence; those of a row that nobody listens to are only counted."""
    table, rows = replica.rows, step.rows
    table.num_known[rows] += 1 if step.counts is None else step.counts
    if bool((table.num_known[rows] > table.num_issued[rows]).any()):
        raise ProtocolError("a row has more tokens than its commands asked for")
    sequences = table.sequences
    muted = bool((table.clients[rows] == NOBODY).any())
    if step.counts is None and not muted:
        for row, token in zip(rows.tolist(), step.token_ids.tolist(), strict=True):
            sequences[row].token_ids.append(token)
        return
    counts = [1] * len(rows) if step.counts is None else step.counts.tolist()
    tokens, start = step.token_ids.tolist(), 0
    listened = (table.clients[rows] != NOBODY).tolist()
    for row, count, is_wanted in zip(rows.tolist(), counts, listened, strict=True):
        sequence = sequences[row]
        assert sequence is not None
        if is_wanted:
            sequence.token_ids.extend(tokens[start : start + count])
        else:
            sequence.num_dropped += count
        start += count


def take_times(
    replica: Replica, step: StepTokens, now: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Note when each row's tokens came. Returns seconds per token since the last ones, and how many tokens, [m].

    Rows whose sequence has its first token are left out: they have no interval.
    """
    rows, table = step.rows, replica.rows
    counts = np.ones(len(rows), np.int64) if step.counts is None else step.counts.astype(np.int64)
    intervals_s = (now - table.last_token_at[rows]) / counts
    table.last_token_at[rows] = now
    first = np.isnan(intervals_s)
    if bool(first.any()):
        for row in rows[first].tolist():
            sequence = table.sequences[row]
            assert sequence is not None
            sequence.first_token_at = now
        intervals_s, counts = intervals_s[~first], counts[~first]
    return intervals_s, counts


def rows_with_full_blocks(replica: Replica, step: StepTokens) -> list[Sequence]:
    """Sequences whose new tokens filled a block. One in `block_size` rows, in a steady step."""
    table, rows = replica.rows, step.rows
    filled = (table.num_known[rows] - 1) // replica.block_size > table.num_committed[rows]
    found = (table.sequences[row] for row in rows[filled].tolist())
    return [sequence for sequence in found if sequence is not None]


def columns_for_clients(replica: Replica, step: StepTokens) -> tuple[StepColumns, NDArray[np.uint32]]:
    """The columns that go to clients, and the rows of their entries."""
    table, rows, counts, token_ids = replica.rows, step.rows, step.counts, step.token_ids
    clients = table.clients[rows]
    wanted = clients != NOBODY
    if not bool(wanted.all()):
        token_ids = token_ids[wanted if counts is None else np.repeat(wanted, counts)]
        counts = None if counts is None else counts[wanted]
        rows, clients = rows[wanted], clients[wanted]
    return StepColumns(clients, table.handles[rows], table.indices[rows], counts, token_ids), rows


def add_logprobs(
    batch: scheduler_pb2.TokenBatch, rows: NDArray[np.uint32], replica: Replica, result: worker_pb2.StepResult
) -> None:
    """Put the log-probabilities of `rows`, the batch's entries, beside them."""
    entries = {row: entry for entry, row in enumerate(rows.tolist())}
    found = (
        (entries[item.row], item.logprobs)
        for item in result.logprobs
        if item.row in entries and item.epoch == int(replica.rows.epochs[item.row])
    )
    for entry, logprobs in sorted(found, key=lambda pair: pair[0]):
        batch.logprobs.add(entry=entry, logprobs=logprobs)
