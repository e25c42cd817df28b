"""`quire bench latency`: batches of equal requests, one batch at a time; what one request feels."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quire.bench.engine import EngineOptions, Run, measure_rooflines, running_engine
from quire.bench.floors import ModelCost, Rooflines, workload_floor
from quire.bench.report import Report, significant, spread
from quire.bench.throughput import described
from quire.bench.workloads import Workload, of_lengths


@dataclass(frozen=True)
class LatencyCases:
    """Every batch size at every prompt length."""

    batches: Sequence[int]
    prompt_lens: Sequence[int]
    output_len: int

    def workloads(self) -> list[Workload]:
        """One workload per case."""
        return [
            of_lengths(batch, prompt_len, self.output_len)
            for prompt_len in self.prompt_lens
            for batch in self.batches
        ]


async def measure_latency(
    options: EngineOptions, cases: LatencyCases, *, repeats: int, say: Callable[[str], None]
) -> Report:
    """Each case once to warm up, then `repeats` times. Raises LaunchError or QuireError."""
    rates = await measure_rooflines(options.device)
    workloads = cases.workloads()
    longest = max(workload.max_total_len for workload in workloads)
    results = []
    async with running_engine(options, longest=longest, say=say) as (engine, cost, start_s):
        for workload in workloads:
            say(f"{workload.name}: {repeats} runs")
            await engine.run(workload)
            runs = [await engine.run(workload) for _ in range(repeats)]
            results.append(_result(workload, runs, cost, rates))
    return Report(
        kind="latency",
        model=described(engine, cost, start_s),
        settings={**asdict(options), **asdict(cases), "repeats": repeats},
        results=results,
        rooflines=rates,
    )


def _result(workload: Workload, runs: Sequence[Run], cost: ModelCost, rates: Rooflines) -> dict[str, Any]:
    first = np.concatenate([run.arrivals.first_token_s() for run in runs])
    last = np.concatenate([run.arrivals.last_token_s() for run in runs])
    output_len = workload.items[0].output_len
    floor = workload_floor(workload, cost, rates)
    steps = output_len - 1
    messages = sum(len(run.arrivals.num_tokens) for run in runs)
    return {
        "batch": len(workload.items),
        "prompt_len": len(workload.items[0].prompt),
        "output_len": output_len,
        "runs": len(runs),
        "ttft_ms": spread(first, 1e3),
        "tpot_ms": spread((last - first) / max(1, steps), 1e3),
        "itl_ms": spread(np.concatenate([run.arrivals.gaps_s() for run in runs]), 1e3),
        "e2e_ms": spread(last, 1e3),
        "tokens_per_message": significant(workload.output_tokens * len(runs) / messages),
        "floor_ttft_ms": significant(1e3 * floor.prefill_s),
        "floor_tpot_ms": significant(1e3 * floor.decode_s / max(1, steps)),
        "floor_e2e_ms": significant(1e3 * floor.total_s),
    }


def latency_table(report: Report) -> Iterator[dict[str, object]]:
    """What a person wants to see of it, in milliseconds."""
    for result in report.results:
        tpot = result["tpot_ms"]["p50"]
        yield {
            "batch": result["batch"],
            "in": result["prompt_len"],
            "out": result["output_len"],
            "TTFT p50": result["ttft_ms"]["p50"],
            "TTFT p99": result["ttft_ms"]["p99"],
            "TTFT floor": result["floor_ttft_ms"],
            "TPOT p50": tpot,
            "TPOT p99": result["tpot_ms"]["p99"],
            "TPOT floor": result["floor_tpot_ms"],
            "of floor": f"{result['floor_tpot_ms'] / tpot:.1%}" if tpot else "-",
            "ITL p50": result["itl_ms"]["p50"],
            "ITL p99": result["itl_ms"]["p99"],
            "E2E p50": result["e2e_ms"]["p50"],
            "E2E floor": result["floor_e2e_ms"],
        }
