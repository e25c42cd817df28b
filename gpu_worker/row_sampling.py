"""What rows ask of sampling, as the host knows it: checked when a row is added, and planned for each command."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from gpu_worker.device_rows import MAX_STOP_IDS, RowChanges
from quire.errors import InvalidRequest
from quire.packing import unpack_float32, unpack_int32
from quire.v1 import types_pb2, worker_pb2

NO_LOGPROBS = -1
_NO_IDS = np.empty(0, np.int32)


class DrawKind(IntEnum):
    """What the rows of a batch need, the cheapest first; each can do what those before it do."""

    GREEDY = 0
    TEMPERATURE = 1
    """Drawn from all tokens."""
    FILTERED = 2
    """Temperature, top-k, top-p, min-p."""
    EDITED = 3
    """Logits are changed first, or looked at afterwards: penalties, bias, min_tokens, log-probabilities."""


@dataclass(frozen=True, slots=True)
class DrawPlan:
    """How to draw for one batch of rows, for all steps of one command."""

    kind: DrawKind
    is_penalised: bool
    num_logprobs: NDArray[np.int64]
    """[n]: log-probabilities that each row asks for, NO_LOGPROBS for none."""
    edits: Mapping[str, NDArray[np.generic]]
    """For the copy to the device, lists of tokens as `kernels.logits.TokenLists` has them: bias_starts, bias_tokens
    int32 and bias_values float32; ban_starts and ban_tokens int32, the stop tokens of rows below their min_tokens. Left
    out where all are empty."""


class RowSampling:
    """Host columns [max_rows]."""

    def __init__(self, max_rows: int, vocab_size: int, max_logprobs: int) -> None:
        self._vocab_size = vocab_size
        self._max_logprobs = max_logprobs
        self._is_random = np.zeros(max_rows, np.bool_)
        self._is_filtered = np.zeros(max_rows, np.bool_)
        self._is_penalised = np.zeros(max_rows, np.bool_)
        self._num_logprobs = np.full(max_rows, NO_LOGPROBS, np.int64)
        self._stops_from = np.zeros(max_rows, np.int64)
        self._stop_ids: dict[int, NDArray[np.int32]] = {}
        self._bias: dict[int, tuple[NDArray[np.int32], NDArray[np.float32]]] = {}

    def check(self, added: worker_pb2.RowAdd) -> None:
        """Raises InvalidRequest, or ValueError for torn arrays, where this row cannot be sampled as it asks."""
        params = added.sampling
        self._check_numbers(params)
        if params.HasField("grammar"):
            raise InvalidRequest("this worker has no grammars", param="response_format")
        if params.HasField("logprobs") and params.logprobs > self._max_logprobs:
            raise InvalidRequest(f"logprobs is at most {self._max_logprobs}", param="logprobs")
        self._check_ids(unpack_int32(added.token_ids), "token", "prompt")
        stops = unpack_int32(params.stop_token_ids)
        self._check_ids(stops, "stop token", "stop_token_ids")
        if len(stops) > MAX_STOP_IDS:
            raise InvalidRequest(f"at most {MAX_STOP_IDS} stop token ids", param="stop_token_ids")
        bias_ids = unpack_int32(params.logit_bias_token_ids)
        bias_values = unpack_float32(params.logit_bias_values)
        if len(bias_ids) != len(bias_values) or not np.isfinite(bias_values).all():
            raise InvalidRequest("logit_bias needs a finite value for each token", param="logit_bias")
        self._check_ids(bias_ids, "biased token", "logit_bias")

    @staticmethod
    def _check_numbers(params: types_pb2.SamplingParams) -> None:
        numbers = {
            "temperature": (_or(params, "temperature", 1.0), 0.0, math.inf),
            "top_p": (_or(params, "top_p", 1.0), 0.0, 1.0),
            "min_p": (params.min_p, 0.0, 1.0),
            "frequency_penalty": (params.frequency_penalty, -math.inf, math.inf),
            "presence_penalty": (params.presence_penalty, -math.inf, math.inf),
            "repetition_penalty": (_or(params, "repetition_penalty", 1.0), 1e-6, math.inf),
        }
        for name, (value, low, high) in numbers.items():
            if not (math.isfinite(value) and low <= value <= high):
                raise InvalidRequest(f"{name} must be finite and in [{low}, {high}], not {value}", param=name)

    def _check_ids(self, ids: NDArray[np.int32], what: str, param: str) -> None:
        # As unsigned numbers those below 0 are large ones.
        if len(ids) and int(ids.view(np.uint32).max()) >= self._vocab_size:
            raise InvalidRequest(f"a {what} id is not below {self._vocab_size}", param=param)

    def add(self, added: worker_pb2.RowAdd, changes: RowChanges) -> None:
        """Take a row that was checked, and say what it is on the device."""
        row, params = added.row, added.sampling
        reals = {
            "temperature": _or(params, "temperature", 1.0),
            "top_p": _or(params, "top_p", 1.0),
            "min_p": params.min_p,
            "repetition": _or(params, "repetition_penalty", 1.0),
            "frequency": params.frequency_penalty,
            "presence": params.presence_penalty,
        }
        penalties = (reals["repetition"], reals["frequency"], reals["presence"])
        self._is_random[row] = reals["temperature"] != 0
        keeps_all = params.top_k <= 0 and reals["top_p"] >= 1 and reals["min_p"] <= 0
        self._is_filtered[row] = self._is_random[row] and not keeps_all
        self._is_penalised[row] = penalties != (1, 0, 0)
        self._num_logprobs[row] = params.logprobs if params.HasField("logprobs") else NO_LOGPROBS
        self._stops_from[row] = added.num_prompt_tokens + params.min_tokens
        self._stop_ids[row] = unpack_int32(params.stop_token_ids)
        self._bias.pop(row, None)
        if params.logit_bias_token_ids:
            self._bias[row] = _summed(
                unpack_int32(params.logit_bias_token_ids), unpack_float32(params.logit_bias_values)
            )
        token_ids = unpack_int32(added.token_ids)
        integers = {
            "last_token": int(token_ids[-1]),
            "num_tokens": len(token_ids),
            "max_tokens": added.max_total_tokens,
            "top_k": max(0, params.top_k),
            "seed": params.seed if params.seed < 2**63 else params.seed - 2**64,
            "stops_from": int(self._stops_from[row]),
        }
        changes.add_row(row, integers, reals, self._stop_ids[row])

    def is_penalised(self, row: int) -> bool:
        """Whether a row needs its tokens counted."""
        return bool(self._is_penalised[row])

    def plan(self, rows: NDArray[np.int64], num_tokens: NDArray[np.int64]) -> DrawPlan:
        """For a batch of `rows` [n], whose tokens before its first step are at least `num_tokens` [n]."""
        edits: dict[str, NDArray[np.generic]] = {}
        biased = [self._bias.get(row) for row in rows.tolist()] if self._bias else []
        if any(biased):
            ids = [_NO_IDS if bias is None else bias[0] for bias in biased]
            edits["bias_starts"], edits["bias_tokens"] = _lists(ids)
            edits["bias_values"] = np.concatenate([bias[1] for bias in biased if bias is not None])
        is_early = num_tokens < self._stops_from[rows]
        if is_early.any():
            banned = [
                self._stop_ids[row] if early else _NO_IDS
                for row, early in zip(rows.tolist(), is_early.tolist(), strict=True)
            ]
            if any(len(ids) for ids in banned):
                edits["ban_starts"], edits["ban_tokens"] = _lists(banned)
        is_penalised = bool(self._is_penalised[rows].any())
        num_logprobs = self._num_logprobs[rows]
        kind = DrawKind.TEMPERATURE if self._is_random[rows].any() else DrawKind.GREEDY
        if self._is_filtered[rows].any():
            kind = DrawKind.FILTERED
        if edits or is_penalised or (num_logprobs > NO_LOGPROBS).any():
            kind = DrawKind.EDITED
        return DrawPlan(kind, is_penalised, num_logprobs, edits)


def _lists(lists: list[NDArray[np.int32]]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Where each list starts, and where the last one ends; and their entries."""
    starts = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(entries) for entries in lists], out=starts[1:])
    return starts, np.concatenate(lists)


def _summed(
    ids: NDArray[np.int32], values: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Every id once, with the sum of its values."""
    unique, places = np.unique(ids, return_inverse=True)
    sums = np.zeros(len(unique), np.float32)
    np.add.at(sums, places, values)
    return unique, sums


def _or(params: types_pb2.SamplingParams, name: str, default: float) -> float:
    value: float = getattr(params, name)
    return value if params.HasField(name) else default  # type: ignore[arg-type]
