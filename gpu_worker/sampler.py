"""Sampling parameters of rows, and the step from logits to tokens."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from kernels import logits as logits_op
from kernels import sampling as sampling_op
from quire.errors import InvalidRequest
from quire.packing import unpack_float32, unpack_int32
from quire.v1 import types_pb2, worker_pb2

NO_LOGPROBS = -1


@dataclass(frozen=True, slots=True)
class LogitBias:
    """Added to a row's logits: token_ids int64 [n], values float32 [n]."""

    token_ids: torch.Tensor
    values: torch.Tensor


class Sampler:
    """Per-row parameters in columns [max_rows] on the device; occurrence counts only once a row needs them."""

    def __init__(self, max_rows: int, vocab_size: int, max_logprobs: int, device: torch.device) -> None:
        self._max_rows = max_rows
        self._vocab_size = vocab_size
        self._max_logprobs = max_logprobs
        self._device = device

        def column(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((max_rows,), value, dtype=dtype, device=device)

        self._temperature = column(1, torch.float32)
        self._top_k = column(0, torch.int64)
        self._top_p = column(1, torch.float32)
        self._min_p = column(0, torch.float32)
        self._repetition = column(1, torch.float32)
        self._frequency = column(0, torch.float32)
        self._presence = column(0, torch.float32)
        self._seeds = column(0, torch.int64)
        self._stop_ids = torch.full((max_rows, 1), -1, dtype=torch.int64, device=device)
        self._stops_from = column(0, torch.int64)
        """Tokens that a row holds when stop tokens may first be drawn."""
        self._output_counts: torch.Tensor | None = None
        self._in_prompt: torch.Tensor | None = None
        # What the host asks before doing work that no row needs.
        self._is_random = np.zeros(max_rows, np.bool_)
        self._is_penalised = np.zeros(max_rows, np.bool_)
        self._min_tokens = np.zeros(max_rows, np.int64)
        self.num_logprobs = np.full(max_rows, NO_LOGPROBS)
        self._bias: dict[int, LogitBias] = {}

    def check(self, added: worker_pb2.RowAdd) -> None:
        """Raises InvalidRequest for parameters that this row cannot be sampled with."""
        params = added.sampling
        token_ids = unpack_int32(added.token_ids)
        if int(token_ids.min()) < 0 or int(token_ids.max()) >= self._vocab_size:
            raise InvalidRequest(f"a token id is not below {self._vocab_size}", param="prompt")
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
        if params.HasField("grammar"):
            raise InvalidRequest("this worker has no grammars", param="response_format")
        stops = unpack_int32(params.stop_token_ids)
        if len(stops) and not (int(stops.min()) >= 0 and int(stops.max()) < self._vocab_size):
            raise InvalidRequest(f"a stop token id is not below {self._vocab_size}", param="stop_token_ids")
        if params.HasField("logprobs") and params.logprobs > self._max_logprobs:
            raise InvalidRequest(f"logprobs is at most {self._max_logprobs}", param="logprobs")
        bias_ids, bias_values = (
            unpack_int32(params.logit_bias_token_ids),
            unpack_float32(params.logit_bias_values),
        )
        if len(bias_ids) != len(bias_values) or not np.isfinite(bias_values).all():
            raise InvalidRequest("logit_bias needs a finite value for each token", param="logit_bias")
        if len(bias_ids) and not (int(bias_ids.min()) >= 0 and int(bias_ids.max()) < self._vocab_size):
            raise InvalidRequest(
                f"logit_bias names a token id not below {self._vocab_size}", param="logit_bias"
            )

    def add(self, added: worker_pb2.RowAdd, token_ids: torch.Tensor) -> None:
        """Keep a row's parameters; token_ids int64 [n] on the device are all its tokens so far."""
        row, params = added.row, added.sampling
        temperature = _or(params, "temperature", 1.0)
        repetition = _or(params, "repetition_penalty", 1.0)
        self._temperature[row] = temperature
        self._top_k[row] = max(0, params.top_k)
        self._top_p[row] = _or(params, "top_p", 1.0)
        self._min_p[row] = params.min_p
        self._repetition[row] = repetition
        self._frequency[row], self._presence[row] = params.frequency_penalty, params.presence_penalty
        self._seeds[row] = params.seed if params.seed < 2**63 else params.seed - 2**64
        self._is_random[row] = temperature != 0
        self._is_penalised[row] = (repetition, params.frequency_penalty, params.presence_penalty) != (1, 0, 0)
        self._min_tokens[row] = params.min_tokens
        self._stops_from[row] = added.num_prompt_tokens + params.min_tokens
        self.num_logprobs[row] = params.logprobs if params.HasField("logprobs") else NO_LOGPROBS
        self._set_stops(row, unpack_int32(params.stop_token_ids))
        self._bias.pop(row, None)
        if params.logit_bias_token_ids:
            ids = torch.from_numpy(unpack_int32(params.logit_bias_token_ids).astype(np.int64))
            values = torch.from_numpy(unpack_float32(params.logit_bias_values).copy())
            self._bias[row] = LogitBias(ids.to(self._device), values.to(self._device))
        if self._is_penalised[row]:
            self._count(row, token_ids, added.num_prompt_tokens)

    def draw(self, rows: list[int], logits: torch.Tensor, num_tokens: torch.Tensor) -> torch.Tensor:
        """Tokens int64 [n] for `rows`, whose raw logits [n, vocab] and lengths before the draw [n] are given."""
        index = torch.tensor(rows, device=self._device)
        if self._is_penalised[rows].any():
            logits = self._penalise(rows, index, logits)
        if self._bias or self._min_tokens[rows].any():
            logits = self._restrict(rows, index, logits, num_tokens)
        if not self._is_random[rows].any():
            tokens = sampling_op.greedy(logits)
        else:
            tokens = sampling_op.sample(
                logits, self._temperature[index], self._top_k[index], self._top_p[index], self._min_p[index],
                self._seeds[index], num_tokens,
            )  # fmt: skip
        if self._output_counts is not None:
            ones = torch.ones((len(rows), 1), dtype=self._output_counts.dtype, device=self._device)
            self._output_counts[index] = self._output_counts[index].scatter_add(1, tokens[:, None], ones)
        return tokens

    def stopped(self, rows: list[int], tokens: torch.Tensor) -> torch.Tensor:
        """bool [n]: which tokens are stop tokens of their rows."""
        return (self._stop_ids[rows] == tokens[:, None]).any(dim=1)

    def _set_stops(self, row: int, stops: np.ndarray[tuple[int], np.dtype[np.int32]]) -> None:
        if len(stops) > self._stop_ids.shape[1]:
            wider = torch.full((self._max_rows, len(stops)), -1, dtype=torch.int64, device=self._device)
            wider[:, : self._stop_ids.shape[1]] = self._stop_ids
            self._stop_ids = wider
        self._stop_ids[row] = -1
        self._stop_ids[row, : len(stops)] = torch.from_numpy(stops.astype(np.int64)).to(self._device)

    def _count(self, row: int, token_ids: torch.Tensor, num_prompt_tokens: int) -> None:
        if self._output_counts is None or self._in_prompt is None:
            shape = (self._max_rows, self._vocab_size)
            self._output_counts = torch.zeros(shape, dtype=torch.int32, device=self._device)
            self._in_prompt = torch.zeros(shape, dtype=torch.bool, device=self._device)
        self._in_prompt[row] = False
        self._in_prompt[row, token_ids[:num_prompt_tokens]] = True
        counts = torch.bincount(token_ids[num_prompt_tokens:], minlength=self._vocab_size)
        self._output_counts[row] = counts.to(torch.int32)

    def _penalise(self, rows: list[int], index: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        assert self._output_counts is not None
        assert self._in_prompt is not None
        # Rows that ask for no penalty have counts of earlier rows; their factors of 1 and 0 undo them exactly.
        return logits_op.apply_penalties(
            logits, self._output_counts[index], self._in_prompt[index],
            self._repetition[index], self._frequency[index], self._presence[index],
        )  # fmt: skip

    def _restrict(
        self, rows: list[int], index: torch.Tensor, logits: torch.Tensor, num_tokens: torch.Tensor
    ) -> torch.Tensor:
        """Logit bias, and stop tokens forbidden before `min_tokens`."""
        logits = logits.clone()
        for entry, row in enumerate(rows):
            bias = self._bias.get(row)
            if bias is not None:
                logits[entry].index_add_(0, bias.token_ids, bias.values)
            if self._min_tokens[row]:
                stops = self._stop_ids[row]
                stops = stops[stops >= 0]
                forbidden = num_tokens[entry] < self._stops_from[row]
                logits[entry, stops] = torch.where(forbidden, float("-inf"), logits[entry, stops])
        return logits


def _or(params: types_pb2.SamplingParams, name: str, default: float) -> float:
    value: float = getattr(params, name)
    return value if params.HasField(name) else default  # type: ignore[arg-type]
