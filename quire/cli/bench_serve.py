"""`quire bench serve`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from quire.bench.serving import ServingOptions, measure_serving, serving_table
from quire.cli.bench_options import Device, Model, Output, Temperature
from quire.cli.bench_output import RESULTS, make_report, say


class ArrivalProcess(StrEnum):
    """How requests are spread over time."""

    POISSON = "poisson"
    FIXED = "fixed"


def serve(
    model: Model = "",
    url: Annotated[
        str, typer.Option(help="http://host:port of a server that runs, instead of one to start.")
    ] = "",
    api_key: Annotated[str, typer.Option(envvar="QUIRE_API_KEY", help="Key for --url.")] = "",
    device: Device = "auto",
    gateways: Annotated[
        int, typer.Option(min=1, help="Gateway processes of the server that is started.")
    ] = 1,
    server_flag: Annotated[
        list[str],
        typer.Option(
            help="Further flag of the server, such as --server-flag=--max-rows=512; may be repeated."
        ),
    ] = [],  # noqa: B006 (typer copies it)
    rate: Annotated[
        list[float], typer.Option(help="Requests per second, `inf` for all at once; may be repeated.")
    ] = [2.0, 8.0],  # noqa: B006
    arrivals: Annotated[
        ArrivalProcess, typer.Option(help="poisson, or fixed for even steps.")
    ] = ArrivalProcess.POISSON,
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds of arrivals at each rate.")] = 20.0,
    at_once: Annotated[int, typer.Option(min=1, help="Requests at the rate `inf`.")] = 512,
    dataset: Annotated[
        Path | None, typer.Option(help="File in ShareGPT's format; by default random token ids.")
    ] = None,
    prompt_len: Annotated[int, typer.Option(min=1, help="Tokens of a random prompt.")] = 512,
    output_len: Annotated[int, typer.Option(min=1, help="Output tokens of a random prompt.")] = 128,
    vocab_size: Annotated[
        int, typer.Option(min=0, help="Of random prompts; 0: the started model's, or 32000 with --url.")
    ] = 0,
    temperature: Temperature = 0.0,
    slo_ttft_ms: Annotated[float, typer.Option(help="Goodput: longest time to first token.")] = 200.0,
    slo_tpot_ms: Annotated[float, typer.Option(help="Goodput: longest time per further token.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Of prompts and arrivals.")] = 0,
    output: Output = RESULTS,
) -> None:
    """Online: open-loop load over HTTP; what clients feel at each rate, and whether the client was the limit."""
    options = ServingOptions(
        model=model,
        url=url,
        api_key=api_key,
        device=device,
        server_flags=[*(("--gateways", str(gateways)) if gateways > 1 else ()), *server_flag],
        rates=rate,
        arrivals=arrivals.value,
        duration_s=duration,
        at_once=at_once,
        dataset=dataset,
        prompt_len=prompt_len,
        output_len=output_len,
        vocab_size=vocab_size,
        temperature=temperature,
        slo_ttft_ms=slo_ttft_ms,
        slo_tpot_ms=slo_tpot_ms,
        seed=seed,
    )
    make_report(measure_serving(options, say=say), serving_table, output)
