"""Draws a saved report as a PNG beside it. Needs matplotlib (`pip install 'quire[bench]'`)."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Report = Mapping[str, Any]
_SIZE_INCHES = (9.0, 5.0)


def plot(report: Path) -> Path | None:
    """Draw the report at `report`; the image's path, or None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    document = json.loads(report.read_text())
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    _DRAW[document["kind"]](figure, document)
    versions = document["versions"]
    figure.suptitle(
        f"quire {versions['quire']} bench {document['kind']}, {document['model'].get('name', '')} on "
        f"{document['model'].get('device') or document['machine']['cpu']}, {document['time'][:10]}",
        fontsize="medium",
    )
    image = report.with_suffix(".png")
    figure.savefig(image, dpi=120)
    return image


def _throughput(figure: Any, document: Report) -> None:
    """Share of the floor that each workload reaches, and where the peer stands on the same scale."""
    axes = figure.subplots()
    results = document["results"][::-1]
    names = [result["workload"] for result in results]
    shares = [100 * result["floor_share"] for result in results]
    bars = axes.barh(names, shares, color="tab:blue", label="Quire")
    axes.bar_label(bars, [_rate(result) for result in results], padding=4, fontsize="small")
    peers = [(at, result["peer"], shares[at]) for at, result in enumerate(results) if result["peer"]]
    if peers:
        axes.scatter(
            [share / peer["ratio"] for _, peer, share in peers],
            [at for at, _, _ in peers],
            marker="|", s=400, linewidths=3, color="tab:orange", label=peers[0][1]["engine"],
        )  # fmt: skip
    axes.set_xlim(0, max(100, *shares) * 1.15)
    axes.set_xlabel("floor / time, in percent: 100 is what the measured read and matmul rates allow")
    axes.legend(loc="lower right")


def _rate(result: Mapping[str, Any]) -> str:
    if result["prompt_tokens"] > 8 * result["output_tokens"]:
        return f"{result['prompt_tokens_per_s']:,.0f} in tok/s"
    return f"{result['output_tokens_per_s']:,.0f} out tok/s"


def _latency(figure: Any, document: Report) -> None:
    """Time to first token and per token over the batch size, with their floors."""
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("ttft", "tpot"), strict=True):
        for prompt_len in sorted({result["prompt_len"] for result in document["results"]}):
            results = [result for result in document["results"] if result["prompt_len"] == prompt_len]
            batches = [result["batch"] for result in results]
            figures = [result[f"{name}_ms"] for result in results]
            (line,) = axes.plot(
                batches, [value["p50"] for value in figures], "o-", label=f"{prompt_len} in, p50"
            )
            axes.plot(batches, [value["p99"] for value in figures], "^:", color=line.get_color(), label="p99")
            floors = [result[f"floor_{name}_ms"] for result in results]
            axes.plot(batches, floors, "--", color=line.get_color(), alpha=0.5, label="floor")
        axes.set_xlabel("requests at once")
        axes.set_ylabel(f"{name.upper()}, ms")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            _plain_ticks(axis)
        axes.legend(fontsize="small")


def _serve(figure: Any, document: Report) -> None:
    """Time to first token and between tokens over the request rate; `inf` stands at the right end."""
    panels = figure.subplots(1, 2)
    results = document["results"]
    rates = [result["rate"] for result in results]
    for axes, name in zip(panels, ("ttft", "itl"), strict=True):
        for percentile, style in (("p50", "o-"), ("p99", "^:")):
            ours = [result[f"{name}_ms"][percentile] for result in results]
            axes.plot(rates, ours, style, color="tab:blue", label=f"Quire {percentile}")
            known = [result for result in results if result["peer"]]
            theirs = [result["peer"][f"{name}_{percentile}_ms"] for result in known]
            if known:
                at = [result["rate"] for result in known]
                axes.plot(at, theirs, style, color="tab:orange", label=f"peer {percentile}")
        axes.set_xlabel("requests per second")
        axes.set_ylabel(f"{name.upper()}, ms")
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis)
        axes.legend(fontsize="small")


def _kernels(figure: Any, document: Report) -> None:
    """Share of the floor that each op reaches, one mark per number of rows, one panel per model."""
    results = [result for result in document["results"] if "share" in result]
    models = list(dict.fromkeys(result["model"] for result in results))
    ops = list(dict.fromkeys(result["op"] for result in results))[::-1]
    figure.set_figheight(2 + 0.25 * len(ops))
    for axes, model in zip(
        figure.subplots(1, len(models), sharey=True, squeeze=False)[0], models, strict=True
    ):
        of_model = [result for result in results if result["model"] == model]
        for rows in sorted({result["rows"] for result in of_model}):
            marks = [result for result in of_model if result["rows"] == rows]
            shares = [100 * result["share"] for result in marks]
            axes.scatter(shares, [ops.index(result["op"]) for result in marks], s=18, label=f"{rows} rows")
        axes.axvline(100, color="gray", linewidth=0.8)
        axes.set_xlim(0, 130)
        axes.set_yticks(range(len(ops)), ops, fontsize="small")
        axes.set_xlabel("floor / time, in percent")
        axes.set_title(model, fontsize="medium")
        axes.legend(fontsize="small")


def _plain_ticks(axis: Any) -> None:
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("{x:g}")


_DRAW: Mapping[str, Callable[[Any, Report], None]] = {
    "throughput": _throughput,
    "latency": _latency,
    "serve": _serve,
    "kernels": _kernels,
}
