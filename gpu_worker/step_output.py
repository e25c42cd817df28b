"""What a command sampled, gathered over its steps into one StepResult."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from quire.errors import QuireError
from quire.packing import pack_float32, pack_int32, pack_uint8, pack_uint32
from quire.v1 import types_pb2, worker_pb2


@dataclass(slots=True)
class SampledStep:
    """One step: a token and a FinishReason (0: none) for each of n rows."""

    rows: list[int]
    tokens: NDArray[np.int64]
    finish_reasons: NDArray[np.int64]
    logprobs: dict[int, tuple[float, NDArray[np.int64], NDArray[np.float32]]] = field(default_factory=dict)
    """By row: of the chosen token, and ids and values of the likeliest."""

    def add_logprobs(
        self,
        num_logprobs: NDArray[np.integer],
        chosen: torch.Tensor,
        top_ids: torch.Tensor,
        top: torch.Tensor,
    ) -> None:
        """Keep what each row asked for: num_logprobs [n], below 0 for none; the rest as `kernels.logprobs` gives."""
        values, ids, tops = chosen.cpu().numpy(), top_ids.cpu().numpy(), top.cpu().numpy()
        for entry, row in enumerate(self.rows):
            count = int(num_logprobs[entry])
            if count >= 0:
                self.logprobs[row] = (float(values[entry]), ids[entry, :count], tops[entry, :count])


class StepOutput:
    """Collects the steps of one command."""

    def __init__(self, step_id: int, epochs: NDArray[np.uint32]) -> None:
        self._step_id = step_id
        self._epochs = epochs
        self._steps: list[SampledStep] = []
        self._errors: list[tuple[int, QuireError]] = []

    def add(self, step: SampledStep) -> None:
        """The next step's tokens."""
        self._steps.append(step)

    def add_error(self, row: int, error: QuireError) -> None:
        """A row that failed alone."""
        self._errors.append((row, error))

    def result(self, tokens_computed: int, step_s: float) -> worker_pb2.StepResult:
        """The message: rows in the order of their first token."""
        result = worker_pb2.StepResult(step_id=self._step_id, tokens_computed=tokens_computed, step_s=step_s)
        for row, error in self._errors:
            result.errors.add(row=row, epoch=int(self._epochs[row]), error=error.to_proto())
        tokens: dict[int, list[int]] = {}
        reasons: dict[int, int] = {}
        for step in self._steps:
            for row, token, reason in zip(
                step.rows, step.tokens.tolist(), step.finish_reasons.tolist(), strict=True
            ):
                tokens.setdefault(row, []).append(token)
                reasons[row] = reason
        rows = list(tokens)
        result.rows = pack_uint32(rows)
        result.epochs = pack_uint32(self._epochs[rows] if rows else [])
        if len(self._steps) > 1:
            result.num_tokens = pack_uint32([len(tokens[row]) for row in rows])
        result.token_ids = pack_int32([token for row in rows for token in tokens[row]])
        result.finish_reasons = pack_uint8([reasons[row] for row in rows])
        self._add_logprobs(result)
        return result

    def _add_logprobs(self, result: worker_pb2.StepResult) -> None:
        asked = dict.fromkeys(row for step in self._steps for row in step.logprobs)
        for row in asked:
            parts = [step.logprobs[row] for step in self._steps if row in step.logprobs]
            result.logprobs.add(
                row=row,
                epoch=int(self._epochs[row]),
                logprobs=types_pb2.Logprobs(
                    token_logprobs=pack_float32([part[0] for part in parts]),
                    top_token_ids=pack_int32(np.concatenate([part[1] for part in parts])),
                    top_logprobs=pack_float32(np.concatenate([part[2] for part in parts])),
                ),
            )
