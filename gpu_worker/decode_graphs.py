"""CUDA graphs of whole decode steps: the host launches one thing per step instead of hundreds."""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from gpu_worker.model_steps import ModelSteps
from gpu_worker.row_sampling import DrawKind

_MOST_ROWS = 512
_FEWEST_IN_GROUPS = 4
_SIZES = (1, 2, 4, 8, 16, 24, 32, *range(48, 129, 16), *range(160, _MOST_ROWS + 1, 32))


def graph_sizes(max_rows: int) -> list[int]:
    """Batch sizes to record, ascending: a batch runs as the next larger one, filled up with rows that are no work."""
    limit = min(_MOST_ROWS, max_rows)
    return [size for size in _SIZES if size < limit] + [limit]


class _Form(NamedTuple):
    """What one graph holds."""

    size: int
    kind: DrawKind
    """The graph of an EDITED batch ends with its logits, the others' with tokens in rows and results."""
    in_groups: bool = False
    """Whether rows that begin alike attend to that in groups; recorded up to the logits alone."""


class DecodeGraphs:
    """One graph per size and kind of batch, in one memory pool; none until `capture`."""

    def __init__(self, steps: ModelSteps, shallow: ModelSteps) -> None:
        self._steps = steps
        self._shallow = shallow
        self._sizes: list[int] = []
        self._graphs: dict[_Form, torch.cuda.CUDAGraph] = {}
        self._logits = torch.empty(0)

    def __len__(self) -> int:
        return len(self._graphs)

    def size_for(self, num_rows: int) -> int | None:
        """The size as which a batch of `num_rows` runs; None where no graph is that large."""
        place = bisect_left(self._sizes, num_rows)
        return self._sizes[place] if place < len(self._sizes) else None

    def replay(self, size: int, kind: DrawKind) -> None:
        """One decode step of any kind but EDITED."""
        self._graphs[_Form(size, kind)].replay()

    def replay_logits(self, size: int, *, in_groups: bool = False) -> torch.Tensor:
        """The first half of a decode step: logits [size, vocab], valid until the next replay."""
        self._graphs[_Form(size, DrawKind.EDITED, in_groups)].replay()
        return self._logits[:size]

    @torch.inference_mode()
    def rehearse(self, max_rows: int) -> None:
        """Every step that `capture` records, unrecorded and over few layers."""
        for form in self._forms(max_rows):
            self._shallow.clear_batch()
            if form.in_groups or form.kind != DrawKind.EDITED:  # which is half of another
                self._step(self._shallow, form)

    @torch.inference_mode()
    def capture(self, max_rows: int, on_progress: Callable[[float], None]) -> None:
        """Record every size and kind; `on_progress` gets the share done. No row may be in use."""
        sizes = graph_sizes(max_rows)
        forms = self._forms(max_rows)
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._shallow.clear_batch()
            self._logits = torch.empty_like(self._shallow.decode_logits(sizes[-1]))
            for number, form in enumerate(forms, start=1):
                self._graphs[form] = self._record(form, pool)
                on_progress(number / len(forms))
        torch.cuda.synchronize()
        self._sizes = sizes

    def _forms(self, max_rows: int) -> list[_Form]:
        """Largest first: the smaller ones fit into its memory."""
        forms = []
        for size in reversed(graph_sizes(max_rows)):
            forms += [_Form(size, kind) for kind in DrawKind]
            if self._steps.can_share and size >= _FEWEST_IN_GROUPS:
                forms.append(_Form(size, DrawKind.EDITED, in_groups=True))
        return forms

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
        if form.kind != DrawKind.EDITED:
            steps.decode(form.size, form.kind)
            return
        logits = steps.decode_logits(form.size, in_groups=form.in_groups)
        if len(self._logits):
            self._logits[: form.size].copy_(logits)
