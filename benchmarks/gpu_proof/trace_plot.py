"""A picture of a trace: some steps, and one boundary between two of them from near."""

from pathlib import Path
from typing import Any

from benchmarks.gpu_proof.steps_trace import Event, StepsTrace

_STEPS = 3
_NEAR_US = 60.0
_COLORS = {
    "attention": ("tab:orange", ("_decode_kernel", "_prefill_kernel", "_merge", "attention")),
    "products": ("tab:blue", ("nvjet", "gemm", "skinny", "gemv", "cublas", "splitK")),
    "norms, rotation, activation": ("tab:green", ("_norm", "_rope", "_silu", "rotate")),
    "rows, plan, sampling": ("tab:red", ("_begin", "_commit", "_plan", "score_", "pick_", "sample")),
    "copies": ("black", ("Memcpy", "Memset")),
}


def draw(trace: StepsTrace, path: Path, *, title: str) -> Path | None:
    """Draw it; None where matplotlib is not installed, or the trace has too few steps."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    first = max(0, len(trace.steps) // 2 - 1)
    shown = trace.steps[first : first + _STEPS]
    if len(shown) < 2:
        return None
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    whole, near = figure.subplots(2, 1)
    _bars(whole, trace.events, shown[0].start_us, shown[-1].end_us, 1e-3)
    whole.set_xlabel("ms")
    edge = (shown[0].end_us + shown[1].start_us) / 2
    _bars(near, trace.events, edge - _NEAR_US, edge + _NEAR_US, 1.0)
    gap = shown[1].start_us - shown[0].end_us
    near.axvspan(
        shown[0].end_us - edge + _NEAR_US, shown[1].start_us - edge + _NEAR_US, color="0.85", zorder=0
    )
    near.set_xlabel(f"us around the end of a step; the gap is {gap:.1f} us")
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(_COLORS) + 1, fontsize="small")
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    figure.savefig(path, dpi=120)
    return path


def _bars(axes: Any, events: list[Event] | Any, start: float, end: float, scale: float) -> None:
    """One lane per kind of work; times from `start`, times `scale`."""
    kinds = [*_COLORS, "others"]
    spans: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for event in events:
        if event["ts"] + event["dur"] >= start and event["ts"] <= end:
            spans[_kind(event["name"])].append(((event["ts"] - start) * scale, event["dur"] * scale))
    for lane, kind in enumerate(kinds):
        color = _COLORS[kind][0] if kind in _COLORS else "tab:gray"
        axes.broken_barh(spans[kind], (lane - 0.4, 0.8), color=color, label=kind)
    axes.set_xlim(0, (end - start) * scale)
    axes.set_yticks([])


def _kind(name: str) -> str:
    return next(
        (kind for kind, (_, parts) in _COLORS.items() if any(part in name for part in parts)), "others"
    )
