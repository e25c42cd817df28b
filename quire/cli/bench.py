"""`quire bench`: how fast this machine serves a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from quire.bench.engine import EngineOptions
from quire.bench.kernels import KernelOptions, kernels_table, measure_kernels
from quire.bench.latency import LatencyCases, latency_table, measure_latency
from quire.bench.report import Report
from quire.bench.shapes import shapes, write_shape
from quire.bench.throughput import measure_throughput, throughput_table
from quire.bench.workloads import NAMES, named, of_lengths
from quire.cli.bench_options import Device, Model, Output, Repeats, Scheduler, Temperature, Worker
from quire.cli.bench_output import RESULTS, failing_clearly, make_report, say
from quire.cli.bench_serve import serve
from quire.local import OFFLINE_SCHEDULER

bench = typer.Typer(
    no_args_is_help=True,
    help="Measure how fast this machine serves a model, beside what its hardware allows.",
)

_MODELS = [*shapes()]
_BATCHES, _CONTEXTS = [1, 8, 64, 256], [1024, 8192]


@bench.command()
def throughput(
    workload: Annotated[
        list[str], typer.Option(help=f"May be repeated. One of {', '.join(NAMES)}, or `all` but tiny.")
    ] = [],  # noqa: B006 (typer copies it)
    requests: Annotated[int, typer.Option(min=0, help="Without a workload: this many requests ...")] = 0,
    prompt_len: Annotated[int, typer.Option(min=1, help="... of so many prompt tokens ...")] = 512,
    output_len: Annotated[int, typer.Option(min=1, help="... and output tokens each.")] = 128,
    model: Model = "",
    device: Device = "auto",
    temperature: Temperature = 0.0,
    worker: Worker = [],  # noqa: B006
    scheduler: Scheduler = [],  # noqa: B006
    repeats: Repeats = 1,
    warm_up: Annotated[bool, typer.Option(help="Run each workload once before the runs that count.")] = True,
    output: Output = RESULTS,
) -> None:
    """Offline: all requests at once, as token ids, through scheduler and worker over gRPC."""
    names = [name for name in NAMES if name != "tiny"] if "all" in workload else workload
    own = [of_lengths(requests, prompt_len, output_len)] if requests else []

    async def measure() -> Report:
        workloads = [*map(named, names), *own] or [named("uniform256")]
        options = _options(model, device, temperature, worker, {**OFFLINE_SCHEDULER, **_pairs(scheduler)})
        return await measure_throughput(options, workloads, repeats=repeats, warm_up=warm_up, say=say)

    make_report(measure(), throughput_table, output)


@bench.command()
def latency(
    batch: Annotated[list[int], typer.Option(min=1, help="Requests at once; may be repeated.")] = [1, 8],  # noqa: B006
    prompt_len: Annotated[list[int], typer.Option(min=1, help="Prompt tokens; may be repeated.")] = [128],  # noqa: B006
    output_len: Annotated[int, typer.Option(min=1, help="Output tokens.")] = 128,
    model: Model = "",
    device: Device = "auto",
    temperature: Temperature = 0.0,
    worker: Worker = [],  # noqa: B006
    scheduler: Scheduler = [],  # noqa: B006
    repeats: Repeats = 5,
    output: Output = RESULTS,
) -> None:
    """Offline: one batch of equal requests at a time; time to first token, per token, end to end."""
    cases = LatencyCases(batch, prompt_len, output_len)

    async def measure() -> Report:
        options = _options(model, device, temperature, worker, _pairs(scheduler))
        return await measure_latency(options, cases, repeats=repeats, say=say)

    make_report(measure(), latency_table, output)


bench.command()(serve)


@bench.command()
def kernels(
    model: Annotated[
        list[str], typer.Option(help="Whose sizes: a checkpoint, hub id or shape; may be repeated.")
    ] = _MODELS,
    device: Device = "auto",
    batch: Annotated[list[int], typer.Option(min=1, help="Rows that decode; may be repeated.")] = _BATCHES,
    context: Annotated[
        list[int], typer.Option(min=1, help="Tokens of each row; may be repeated.")
    ] = _CONTEXTS,
    prompt_len: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 4096,
    block_size: Annotated[int, typer.Option(min=1, help="Tokens per KV block.")] = 16,
    output: Output = RESULTS,
) -> None:
    """Each kernel alone: its time, bytes, and share of the measured copy bandwidth or matmul rate."""
    options = KernelOptions(model, device, batch, context, prompt_len, block_size)
    make_report(measure_kernels(options, say=say), kernels_table, output)


@bench.command()
def shape(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(shapes())}.")],
    directory: Annotated[Path, typer.Argument(help="Where to write it.")],
) -> None:
    """Write a checkpoint without weights, to be served with --load-format dummy."""
    failing_clearly(lambda: write_shape(name, directory))


def _options(
    model: str, device: str, temperature: float, worker: list[str], scheduler: Mapping[str, object]
) -> EngineOptions:
    return EngineOptions(model, device, temperature, worker=_pairs(worker), scheduler=scheduler)


def _pairs(settings: list[str]) -> dict[str, object]:
    pairs = [setting.partition("=") for setting in settings]
    for name, equals, _ in pairs:
        if not equals:
            raise typer.BadParameter(f"{name} has no value: write {name}=value")
    return {name.replace("-", "_"): value for name, _, value in pairs}
