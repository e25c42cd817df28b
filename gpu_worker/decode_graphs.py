"""CUDA graphs of whole decode steps: the host launches one thing per step instead of hundreds."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from gpu_worker.model_steps import ModelSteps
from gpu_worker.row_sampling import DrawKind

_MOST_ROWS = 1024
_SIZES_IN_GROUPS = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768)
# None of 448 and 480: the library's products of 512 rows take less time (docs/performance.md, 23).
_SIZES = (1, 2, 4, 8, 16, 24, 32, *range(48, 129, 16), *range(160, 417, 32), *range(512, _MOST_ROWS, 128))


def graph_sizes(max_rows: int) -> list[int]:
    """Batch sizes to record, ascending: a batch runs as the next larger one, filled up with rows that are no work."""
    return _below(min(_MOST_ROWS, max_rows), _SIZES)


def _below(limit: int, sizes: Sequence[int]) -> list[int]:
    return [size for size in sizes if size < limit] + [limit]


class _Form(NamedTuple):
    """What one graph holds."""

    size: int
    kind: DrawKind
    """The graph of an EDITED batch ends with its logits, the others' with tokens in rows and results."""
    in_groups: bool
    """Whether rows that begin alike attend to that in groups."""


class DecodeGraphs:
    """One graph per size and kind of batch, in one memory pool; none until `capture`."""

    def __init__(self, steps: ModelSteps, shallow: ModelSteps) -> None:
        self._steps = steps
        self._shallow = shallow
        self._sizes: list[int] = []
        self._sizes_in_groups: list[int] = []
        self._graphs: dict[_Form, torch.cuda.CUDAGraph] = {}
        self._logits = torch.empty(0)

    def __len__(self) -> int:
        return len(self._graphs)

    def size_for(self, num_rows: int, *, in_groups: bool) -> int | None:
        """The size as which a batch of `num_rows` runs; None where no graph is that large."""
        sizes = self._sizes_in_groups if in_groups else self._sizes
        place = bisect_left(sizes, num_rows)
        return sizes[place] if place < len(sizes) else None

    def replay(self, size: int, kind: DrawKind, *, in_groups: bool) -> None:
        """One decode step of any kind but EDITED."""
        self._graphs[_Form(size, kind, in_groups)].replay()

    def replay_logits(self, size: int, *, in_groups: bool) -> torch.Tensor:
        """The first half of a decode step: logits [size, vocab], valid until the next replay."""
        self._graphs[_Form(size, DrawKind.EDITED, in_groups)].replay()
        return self._logits[:size]

    @torch.inference_mode()
    def rehearse(self, max_rows: int) -> None:
        """Every step that `capture` records, unrecorded and over few layers."""
        for form in self._forms(max_rows):
            if form.kind != DrawKind.EDITED:  # which is half of another
                self._shallow.clear_batch()
                self._step(self._shallow, form)

    @torch.inference_mode()
    def capture(self, max_rows: int, on_progress: Callable[[float], None]) -> None:
        """Record every size and kind; `on_progress` gets the share done. No row may be in use."""
        forms = self._forms(max_rows)
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._shallow.clear_batch()
            self._logits = torch.empty_like(self._shallow.decode_logits(forms[0].size))
            for number, form in enumerate(forms, start=1):
                self._graphs[form] = self._record(form, pool)
                on_progress(number / len(forms))
        torch.cuda.synchronize()
        for sizes, in_groups in ((self._sizes, False), (self._sizes_in_groups, True)):
            sizes[:] = sorted({form.size for form in forms if form.in_groups == in_groups})

    def _forms(self, max_rows: int) -> list[_Form]:
        """Largest first: the smaller ones fit into its memory."""
        sizes = graph_sizes(max_rows)
        in_groups = _below(sizes[-1], _SIZES_IN_GROUPS) if self._steps.can_share else []
        forms = [_Form(size, kind, False) for size in sizes for kind in DrawKind]
        forms += [_Form(size, kind, True) for size in in_groups for kind in DrawKind]
        return sorted(forms, key=lambda form: -form.size)

    def _record(self, form: _Form, pool: Any) -> torch.cuda.CUDAGraph:
        # Kernels are loaded, and libraries initialised, outside of the recording.
        self._shallow.clear_batch()
        self._step(self._shallow, form)
        self._steps.clear_batch()
        # Not `torch.cuda.graph`: what it tidies up before each recording would take most of the time.
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        self._step(self._steps, form)
        graph.capture_end()
        return graph

    def _step(self, steps: ModelSteps, form: _Form) -> None:
        if form.kind == DrawKind.EDITED:
            self._logits[: form.size].copy_(steps.decode_logits(form.size, in_groups=form.in_groups))
        else:
            steps.decode(form.size, form.kind, in_groups=form.in_groups)
