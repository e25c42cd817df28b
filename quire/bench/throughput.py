"""`quire bench throughput`: whole workloads through scheduler and worker, all requests at once."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from quire.bench.engine import Engine, EngineOptions, Run, measure_rooflines, running_engine, total
from quire.bench.floors import ModelCost, Rooflines, workload_floor
from quire.bench.peers import peer_throughput
from quire.bench.report import Report, significant, spread
from quire.bench.workloads import Workload


async def measure_throughput(
    options: EngineOptions,
    workloads: Sequence[Workload],
    *,
    repeats: int,
    warm_up: bool,
    say: Callable[[str], None],
) -> Report:
    """Every workload once to warm up, if asked for, then `repeats` times; rooflines first, on the same device.

    Raises LaunchError or QuireError where the engine cannot run them.
    """
    rates = await measure_rooflines(options.device)
    longest = max(workload.max_total_len for workload in workloads)
    results = []
    async with running_engine(options, longest=longest, say=say) as (engine, cost, start_s):
        for workload in workloads:
            if warm_up:
                say(f"{workload.name}: warming up")
                await engine.run(workload)
            runs = await _runs(engine, workload, repeats, say)
            results.append(_result(engine, workload, runs, cost, rates))
    return Report(
        kind="throughput",
        model=described(engine, cost, start_s),
        settings={**asdict(options), "repeats": repeats, "warm_up": warm_up},
        results=results,
        rooflines=rates,
    )


def described(engine: Engine, cost: ModelCost, start_s: float) -> dict[str, Any]:
    """The model and its worker, for a report."""
    worker = engine.description
    return {
        "name": worker.model.name,
        "architecture": worker.model.architecture,
        "dtype": worker.model.dtype,
        "device": worker.device,
        "max_model_len": worker.model.max_model_len,
        "weights_bytes": worker.weights_bytes,
        "step_bytes": cost.step_bytes,
        "kv_bytes_per_token": cost.kv_bytes_per_token,
        "kv_tokens": worker.num_blocks * worker.block_size,
        "block_size": worker.block_size,
        "max_rows": worker.max_rows,
        "max_step_tokens": worker.max_step_tokens,
        "start_s": round(start_s, 2),
    }


async def _runs(engine: Engine, workload: Workload, repeats: int, say: Callable[[str], None]) -> list[Run]:
    runs = []
    for number in range(repeats):
        runs.append(await engine.run(workload))
        seconds = runs[-1].arrivals.total_s
        say(
            f"{workload.name}: run {number + 1} of {repeats}: {seconds:.3f} s, "
            f"{workload.prompt_tokens / seconds:,.0f} in tok/s, {workload.output_tokens / seconds:,.0f} out tok/s"
        )
    return runs


def _result(
    engine: Engine, workload: Workload, runs: Sequence[Run], cost: ModelCost, rates: Rooflines
) -> dict[str, Any]:
    """The run of median length speaks for all of them."""
    run = sorted(runs, key=lambda run: run.arrivals.total_s)[(len(runs) - 1) // 2]
    seconds = run.arrivals.total_s
    floor = workload_floor(workload, cost, rates)
    figures = {
        "seconds": significant(seconds),
        "output_tokens_per_s": significant(workload.output_tokens / seconds),
        "prompt_tokens_per_s": significant(workload.prompt_tokens / seconds),
    }
    model = engine.description.model.name
    peer = peer_throughput(engine.description.device, model, workload.name, figures)
    usages = run.arrivals.usages
    return {
        "workload": workload.name,
        "requests": len(workload.items),
        "prompt_tokens": workload.prompt_tokens,
        "output_tokens": int(run.arrivals.num_tokens.sum()),
        **figures,
        "requests_per_s": significant(len(workload.items) / seconds),
        "run_seconds": [significant(run.arrivals.total_s) for run in runs],
        "run_seconds_spread": significant(statistics.pstdev(run.arrivals.total_s for run in runs)),
        "floor_prefill_s": significant(floor.prefill_s),
        "floor_decode_s": significant(floor.decode_s),
        "floor_s": significant(floor.total_s),
        "floor_share": significant(floor.total_s / seconds),
        "peer": None if peer is None else asdict(peer),
        "ttft_ms": spread(run.arrivals.first_token_s(), 1e3),
        "steps": run.steps,
        "step_mean_ms": significant(1e3 * seconds / run.steps),
        "tokens_computed": run.tokens_computed,
        "cached_tokens": total(usages, "cached_tokens"),
        "recomputed_tokens": total(usages, "recomputed_tokens"),
        "preemptions": total(usages, "preemptions"),
        "cpu_s": run.cpu_s,
    }


def throughput_table(report: Report) -> Iterator[dict[str, object]]:
    """What a person wants to see of it."""
    for result in report.results:
        peer = result["peer"]
        yield {
            "workload": result["workload"],
            "requests": result["requests"],
            "in tok": result["prompt_tokens"],
            "out tok": result["output_tokens"],
            "seconds": result["seconds"],
            "in tok/s": result["prompt_tokens_per_s"],
            "out tok/s": result["output_tokens_per_s"],
            "floor s": result["floor_s"],
            "of floor": f"{result['floor_share']:.1%}",
            "peer": "-" if peer is None else f"{peer['value']:g}",
            "× peer": None if peer is None else peer["ratio"],
            "steps": result["steps"],
            "ms/step": result["step_mean_ms"],
            "preempted": result["preemptions"],
        }
