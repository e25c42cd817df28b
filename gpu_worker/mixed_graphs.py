"""CUDA graphs of steps with prompts: without them the host's launches, not the GPU, would set a short prompt's time.

A batch runs as the next larger size in tokens and decoding rows, filled up with tokens that go nowhere, rows that are
done, chunks without queries and tiles past their chunk's end. Large batches keep the GPU busy by themselves.
"""

import time
from bisect import bisect_left
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_worker.model_steps import ModelSteps
from gpu_worker.step_batch import StepBatch
from kernels.paged_attention import QUERY_TILE

MOST_TOKENS = 2048
MOST_DECODING = 256
_MOST_CHUNKS = 8
_TOKENS = (64, 128, 256, 384, 512, 768, 1024, 1536, MOST_TOKENS)
_DECODING = (0, 16, 64, MOST_DECODING)
_PAST_THE_END = 1 << 30
_NARROW = ("query_lens", "query_starts", "chunk_ends", "tile_chunks", "tile_starts")
"""Fields that the kernels read as int32."""


class MixedSize(NamedTuple):
    """As what a batch runs."""

    tokens: int
    decoding: int

    def fields(self) -> dict[str, tuple[int, int]]:
        """Length and filling of each field, in the order in which they are packed; the narrow ones come last."""
        rows, tiles = self.decoding + _MOST_CHUNKS, self.tokens // QUERY_TILE + _MOST_CHUNKS
        return {
            "decode_rows": (self.decoding, -1),
            "prefill_tokens": (self.tokens, 0),
            "prefill_positions": (self.tokens, 0),
            "prefill_slots": (self.tokens, -1),
            "attention_rows": (rows, -1),
            "sample_at": (rows, 0),
            "query_lens": (_MOST_CHUNKS, 0),
            "query_starts": (_MOST_CHUNKS, 0),
            "chunk_ends": (_MOST_CHUNKS, 0),
            "tile_chunks": (tiles, 0),
            "tile_starts": (tiles, _PAST_THE_END),
        }


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    packed: torch.Tensor
    """int64: what it reads."""


class MixedGraphs:
    """One graph per size, in one memory pool; none until `capture`. Each ends with logits."""

    def __init__(self, steps: ModelSteps, fill_row: int, device: torch.device) -> None:
        self._steps = steps
        self._fill_row = fill_row
        self._device = device
        self._tokens: list[int] = []
        self._decoding: list[int] = []
        self._graphs: dict[MixedSize, _Graph] = {}
        self._logits = torch.empty(0)

    def __len__(self) -> int:
        return len(self._graphs)

    def size_for(self, batch: StepBatch) -> MixedSize | None:
        """The size as which a batch runs; None where no graph is that large, or nothing is prefilled."""
        tokens = bisect_left(self._tokens, batch.num_prefilled)
        decoding = bisect_left(self._decoding, batch.num_decoding)
        if not batch.prefill or len(batch.prefill["query_lens"]) > _MOST_CHUNKS:
            return None
        if tokens == len(self._tokens) or decoding == len(self._decoding):
            return None
        return MixedSize(self._tokens[tokens], self._decoding[decoding])

    def pack(self, batch: StepBatch, size: MixedSize) -> NDArray[np.int64]:
        """A batch, filled up, in one array."""
        num_decoding, prefill = batch.num_decoding, batch.prefill
        shift = size.decoding - num_decoding
        sample_at = prefill["sample_at"].astype(np.int64)
        sample_at[num_decoding:] += shift
        attention_rows = np.full(size.decoding + _MOST_CHUNKS, self._fill_row, np.int64)
        attention_rows[:num_decoding] = prefill["attention_rows"][:num_decoding]
        chunk_rows = prefill["attention_rows"][num_decoding:]
        attention_rows[size.decoding : size.decoding + len(chunk_rows)] = chunk_rows
        filled = {
            **prefill,
            "decode_rows": batch.rows[:num_decoding],
            "attention_rows": attention_rows,
            "sample_at": sample_at,
            "query_starts": prefill["query_starts"] + shift,
        }
        parts = []
        for name, (length, filling) in size.fields().items():
            part = np.full(length, self._fill_row if name == "decode_rows" else filling, np.int64)
            part[: len(filled[name])] = filled[name]
            parts.append(part)
        return np.concatenate(parts)

    def replay(self, size: MixedSize, packed: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocab] of a packed batch on the device, valid until the next replay."""
        graph = self._graphs[size]
        graph.packed.copy_(packed)
        graph.graph.replay()
        return self._logits

    @torch.inference_mode()
    def capture(self, max_rows: int, max_step_tokens: int, on_progress: Callable[[float], None]) -> None:
        """Record every size that fits; `on_progress` gets the share done. No row may be in use."""
        tokens = [size for size in _TOKENS if size <= max_step_tokens]
        decoding = [size for size in _DECODING if size <= max_rows]
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            sizes = [MixedSize(*pair) for pair in product(reversed(tokens), reversed(decoding))]
            for number, size in enumerate(sizes, start=1):
                self._graphs[size] = self._record(size, pool)
                on_progress(number / len(sizes))
            self._tokens = [size for size in tokens if self._is_worth_it(MixedSize(size, 0))]
        torch.cuda.synchronize()
        self._decoding = decoding
        self._graphs = {size: graph for size, graph in self._graphs.items() if size.tokens in self._tokens}

    def _is_worth_it(self, size: MixedSize) -> bool:
        """Whether the GPU needs less time than the launches do: else the filling would cost more than is gained."""
        graph = self._graphs[size]
        torch.cuda.synchronize()
        started = time.perf_counter()
        self._step(size, graph.packed)
        launched = time.perf_counter()
        torch.cuda.synchronize()
        replayed = time.perf_counter()
        graph.graph.replay()
        torch.cuda.synchronize()
        return time.perf_counter() - replayed < launched - started

    def _record(self, size: MixedSize, pool: Any) -> _Graph:
        fields = size.fields()
        nothing = np.concatenate([np.full(*field) for field in fields.values()]).astype(np.int64)
        packed = torch.from_numpy(nothing).to(self._device)
        packed[packed == -1] = self._fill_row
        slots = sum(fields[name][0] for name in ("decode_rows", "prefill_tokens", "prefill_positions"))
        packed[slots : slots + size.tokens] = -1
        self._steps.clear_batch()
        # The first run compiles; the largest size comes first.
        logits = self._step(size, packed)
        if len(self._logits) == 0:
            self._logits = torch.empty_like(logits)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        logits = self._step(size, packed)
        self._logits[: len(logits)].copy_(logits)
        graph.capture_end()
        return _Graph(graph, packed)

    def _step(self, size: MixedSize, packed: torch.Tensor) -> torch.Tensor:
        fields = size.fields()
        num_narrow = sum(fields[name][0] for name in _NARROW)
        narrow = packed[len(packed) - num_narrow :].to(torch.int32)
        lengths = [length for length, _ in fields.values()]
        wide = torch.split(packed, lengths)
        inputs = dict(zip(fields, wide, strict=True))
        inputs |= zip(_NARROW, torch.split(narrow, [fields[name][0] for name in _NARROW]), strict=True)
        return self._steps.mixed_logits(inputs["decode_rows"], inputs)
