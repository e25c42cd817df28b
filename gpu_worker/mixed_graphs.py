"""CUDA graphs of steps with prompts: without them the host's launches, not the GPU, would set a short prompt's time.

A batch runs as the next larger size in tokens and decoding rows, filled up with tokens that go nowhere, rows that are
done, chunks without queries and tiles past their chunk's end. Sizes that keep the GPU busy by themselves are not
recorded: of a large model most, of a small one none.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_worker.model_steps import ModelSteps
from gpu_worker.step_batch import StepBatch
from kernels.paged_attention import QUERY_TILE

MOST_TOKENS = 8192
MOST_DECODING = 1024
_TOKENS = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, MOST_TOKENS)
_DECODING = (0, 16, 64, 256, 512, MOST_DECODING)
_FEWEST_CHUNKS = 8
_PAST_THE_END = 1 << 30
# Of a step's time what the GPU may need after the last launch, if the launches set it: beside the other threads of a
# worker that serves they take half as long again as in a trial.
_TAIL = 0.3
_NARROW = ("query_lens", "query_starts", "chunk_ends", "tile_chunks", "tile_starts")
"""Fields that the kernels read as int32."""


class MixedSize(NamedTuple):
    """As what a batch runs."""

    tokens: int
    decoding: int

    @property
    def chunks(self) -> int:
        """Prompts that it has room for: so many that they are a tile long on average."""
        return max(_FEWEST_CHUNKS, self.tokens // QUERY_TILE)

    def fields(self) -> dict[str, tuple[int, int]]:
        """Length and filling of each field, in the order in which they are packed; the narrow ones come last."""
        chunks = self.chunks
        rows, tiles = self.decoding + chunks, self.tokens // QUERY_TILE + chunks
        return {
            "decode_rows": (self.decoding, -1),
            "prefill_tokens": (self.tokens, 0),
            "prefill_positions": (self.tokens, 0),
            "prefill_slots": (self.tokens, -1),
            "attention_rows": (rows, -1),
            "sample_at": (rows, 0),
            "query_lens": (chunks, 0),
            "query_starts": (chunks, 0),
            "chunk_ends": (chunks, 0),
            "tile_chunks": (tiles, 0),
            "tile_starts": (tiles, _PAST_THE_END),
        }


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    packed: torch.Tensor
    """int64: what it reads."""


class MixedGraphs:
    """One graph per size, in one memory pool; none until `capture`. Each ends with logits."""

    def __init__(self, steps: ModelSteps, shallow: ModelSteps, fill_row: int, device: torch.device) -> None:
        self._steps = steps
        self._shallow = shallow
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
        if not batch.prefill or tokens == len(self._tokens) or decoding == len(self._decoding):
            return None
        size = MixedSize(self._tokens[tokens], self._decoding[decoding])
        return size if len(batch.prefill["query_lens"]) <= size.chunks else None

    def pack(self, batch: StepBatch, size: MixedSize) -> NDArray[np.int64]:
        """A batch, filled up, in one array."""
        num_decoding, prefill = batch.num_decoding, batch.prefill
        shift = size.decoding - num_decoding
        sample_at = prefill["sample_at"].astype(np.int64)
        sample_at[num_decoding:] += shift
        attention_rows = np.full(size.decoding + size.chunks, self._fill_row, np.int64)
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
    def rehearse(self, max_rows: int, max_step_tokens: int) -> None:
        """Every step that `capture` may record, unrecorded and over few layers."""
        for num_tokens, num_decoding in product(
            _up_to(max_step_tokens, _TOKENS), _up_to(max_rows, _DECODING)
        ):
            size = MixedSize(num_tokens, num_decoding)
            self._step(self._shallow, size, self._nothing(size))

    @torch.inference_mode()
    def capture(self, max_rows: int, max_step_tokens: int, on_progress: Callable[[float], None]) -> None:
        """Record every size that fits and gains by it; `on_progress` gets the share done. No row may be in use."""
        tokens = _up_to(max_step_tokens, _TOKENS)
        self._decoding = _up_to(max_rows, _DECODING)
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # Largest first: the smaller ones fit into its memory, and gain by it where it does.
            for number, num_tokens in enumerate(reversed(tokens), start=1):
                if self._tokens or self._is_worth_it(MixedSize(num_tokens, 0)):
                    self._tokens.insert(0, num_tokens)
                    for num_decoding in reversed(self._decoding):
                        size = MixedSize(num_tokens, num_decoding)
                        self._graphs[size] = self._record(size, pool)
                on_progress(number / len(tokens))
        torch.cuda.synchronize()

    def _is_worth_it(self, size: MixedSize) -> bool:
        """Whether the GPU waits for the launches: else the filling would cost more than is gained."""
        packed = self._nothing(size)
        self._step(self._shallow, size, packed)  # loads what is to be launched
        torch.cuda.synchronize()
        started = time.perf_counter()
        self._step(self._steps, size, packed)
        launched = time.perf_counter()
        torch.cuda.synchronize()
        done = time.perf_counter()
        return done - launched < _TAIL * (done - started)

    def _record(self, size: MixedSize, pool: Any) -> _Graph:
        packed = self._nothing(size)
        # Kernels are loaded, and libraries initialised, outside of the recording.
        logits = self._step(self._shallow, size, packed)
        if len(self._logits) == 0:
            self._logits = torch.empty_like(logits)
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        logits = self._step(self._steps, size, packed)
        self._logits[: len(logits)].copy_(logits)
        graph.capture_end()
        return _Graph(graph, packed)

    def _nothing(self, size: MixedSize) -> torch.Tensor:
        """A packed batch that is all filling, on the device."""
        fields = size.fields()
        packed = torch.from_numpy(
            np.concatenate([np.full(*field) for field in fields.values()]).astype(np.int64)
        ).to(self._device)
        packed[packed == -1] = self._fill_row
        slots = sum(fields[name][0] for name in ("decode_rows", "prefill_tokens", "prefill_positions"))
        packed[slots : slots + size.tokens] = -1
        for steps in (self._shallow, self._steps):
            steps.clear_batch()
        return packed

    def _step(self, steps: ModelSteps, size: MixedSize, packed: torch.Tensor) -> torch.Tensor:
        fields = size.fields()
        num_narrow = sum(fields[name][0] for name in _NARROW)
        narrow = packed[len(packed) - num_narrow :].to(torch.int32)
        lengths = [length for length, _ in fields.values()]
        wide = torch.split(packed, lengths)
        inputs = dict(zip(fields, wide, strict=True))
        inputs |= zip(_NARROW, torch.split(narrow, [fields[name][0] for name in _NARROW]), strict=True)
        return steps.mixed_logits(inputs["decode_rows"], inputs)


def _up_to(limit: int, sizes: Sequence[int]) -> list[int]:
    return [size for size in sizes if size <= limit]
