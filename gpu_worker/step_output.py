"""What a command sampled, from the device's results to a StepResult."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpu_worker.row_sampling import NO_LOGPROBS
from kernels.decode_rows import AT_LIMIT, NOT_FINITE, STOPPED
from quire.errors import Internal, QuireError
from quire.packing import pack_float32, pack_int32, pack_uint8, pack_uint32
from quire.v1 import types_pb2, worker_pb2

_FINISH_REASONS = {STOPPED: types_pb2.FINISH_REASON_STOP, AT_LIMIT: types_pb2.FINISH_REASON_LENGTH}


@dataclass(frozen=True, slots=True)
class RowFailure:
    """A row that failed alone."""

    row: int
    epoch: int
    error: QuireError


@dataclass(frozen=True, slots=True)
class StepLogprobs:
    """Log-probabilities of one step, as `kernels.logprobs` gives them for the batch's rows."""

    chosen: NDArray[np.float32]
    top_ids: NDArray[np.int64]
    top: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CommandOutline:
    """What the host knows of a command when it is launched; its batch's n rows keep their order in all steps."""

    step_id: int
    rows: NDArray[np.uint32]
    epochs: NDArray[np.uint32]
    num_logprobs: NDArray[np.int64]
    num_steps: int
    num_decoding: int
    """The first so many rows decode in the first step too; the others end their prompt there."""
    num_prefilled: int
    """Prompt tokens computed."""
    failures: list[RowFailure] = field(default_factory=list)


def step_result(
    outline: CommandOutline, results: NDArray[np.int32], logprobs: list[StepLogprobs], step_s: float
) -> worker_pb2.StepResult:
    """The message; results [at least num_steps, 2, at least n] hold tokens and statuses of each step."""
    num_rows = len(outline.rows)
    tokens, status = results[: outline.num_steps, 0, :num_rows], results[: outline.num_steps, 1, :num_rows]
    is_sampled = status >= 0
    counts = is_sampled.sum(axis=0)
    found = np.flatnonzero(counts)
    is_active = is_sampled | (status == NOT_FINITE)
    num_decoded = int(is_active.sum()) - int(is_active[:1, outline.num_decoding :].sum())
    result = worker_pb2.StepResult(
        step_id=outline.step_id,
        rows=pack_uint32(outline.rows[found]),
        epochs=pack_uint32(outline.epochs[found]),
        # A row samples in consecutive steps.
        token_ids=pack_int32(tokens.T[is_sampled.T]),
        finish_reasons=pack_uint8(_finish_reasons(status[:, found])),
        step_s=step_s,
        tokens_computed=outline.num_prefilled + num_decoded,
    )
    if (counts[found] != 1).any():
        result.num_tokens = pack_uint32(counts[found])
    for failure in outline.failures:
        result.errors.add(row=failure.row, epoch=failure.epoch, error=failure.error.to_proto())
    for entry in np.flatnonzero((status == NOT_FINITE).any(axis=0)).tolist():
        error = Internal("the model's output is not a number")
        row, epoch = int(outline.rows[entry]), int(outline.epochs[entry])
        result.errors.add(row=row, epoch=epoch, error=error.to_proto())
    _add_logprobs(result, outline, is_sampled, logprobs)
    return result


def _finish_reasons(status: NDArray[np.int32]) -> NDArray[np.uint8]:
    """[n]: a row's only status that ends it, if any; status [steps, n]."""
    reasons = np.zeros(status.shape[1], np.uint8)
    for ending, reason in _FINISH_REASONS.items():
        reasons[(status == ending).any(axis=0)] = reason
    return reasons


def _add_logprobs(
    result: worker_pb2.StepResult,
    outline: CommandOutline,
    is_sampled: NDArray[np.bool_],
    logprobs: list[StepLogprobs],
) -> None:
    for entry in np.flatnonzero(outline.num_logprobs > NO_LOGPROBS).tolist():
        count = int(outline.num_logprobs[entry])
        steps = [logprobs[number] for number in np.flatnonzero(is_sampled[:, entry]).tolist()]
        if steps:
            result.logprobs.add(
                row=int(outline.rows[entry]),
                epoch=int(outline.epochs[entry]),
                logprobs=types_pb2.Logprobs(
                    token_logprobs=pack_float32(np.array([step.chosen[entry] for step in steps])),
                    top_token_ids=pack_int32(np.concatenate([step.top_ids[entry, :count] for step in steps])),
                    top_logprobs=pack_float32(np.concatenate([step.top[entry, :count] for step in steps])),
                ),
            )
