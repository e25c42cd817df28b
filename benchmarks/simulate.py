"""The scheduler's real core in simulated time: throughput, latency, cache hits, fairness and honesty.

    python -m benchmarks.simulate all --out benchmarks/results/simulate.json
    python -m benchmarks.simulate flood --shape qwen3-0.6b --seed 3

A worker is a roofline model of a GPU (`benchmarks/simulator/step_time.py`), so figures are not those of a real one;
what they are for is to compare policies on the same trace. The same arguments give the same figures.
"""

import argparse
import json
import time
from dataclasses import asdict
from math import isnan
from pathlib import Path

from benchmarks.simulator.fleet import Fleet
from benchmarks.simulator.node import Node
from benchmarks.simulator.policies import POLICIES
from benchmarks.simulator.report import Report, summarise
from benchmarks.simulator.run import Simulation
from benchmarks.simulator.scenarios import SCENARIOS, relative_speed
from benchmarks.simulator.step_time import H200, SHAPES, ModelShape
from benchmarks.simulator.tables import comparison_table, groups_table, main_table
from benchmarks.simulator.traces import Trace
from benchmarks.simulator.worker_model import SimulatedWorker, describe
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.routing import Route, cheapest
from scheduler_svc.core.scheduler import Scheduler

REPLICAS_PER_SCHEDULER = 10


def make_node(
    shape: ModelShape, replicas: int, num_blocks: int | None, route: Route = cheapest, name: str = "worker"
) -> Node:
    """A scheduler with the limits that the service has by default, and its workers."""
    workers = {}
    for number in range(replicas):
        description = describe(f"{name}-{number}", number + 1, shape, H200, num_blocks=num_blocks)
        workers[description.worker_id] = SimulatedWorker(description, shape, H200)
    return Node(Scheduler(Limits(), route), workers)


def simulate(trace: Trace, shape: ModelShape, replicas: int, num_blocks: int | None, policy: str) -> Report:
    """Run one trace with one way to choose a replica: within a scheduler, and between schedulers."""
    started = time.perf_counter()
    route_of, nodes = POLICIES[policy], []
    for first in range(0, replicas, REPLICAS_PER_SCHEDULER):
        count = min(replicas - first, REPLICAS_PER_SCHEDULER)
        nodes.append(make_node(shape, count, num_blocks, route_of(count), f"worker-{first}"))
    fleet = Fleet(nodes, route_of(replicas)) if len(nodes) > 1 else None
    recorder = Simulation(trace, nodes, fleet).run()
    return summarise(
        recorder,
        trace=trace.name,
        policy=policy,
        weights={name: each.weight or 1.0 for name, each in trace.tenant_policies.items()},
        busy_s=[worker.busy_s for node in nodes for worker in node.workers.values()],
        wall_s=time.perf_counter() - started,
    )


def run_scenario(
    name: str, shape: ModelShape, replicas: int | None, policies: tuple[str, ...] | None, seed: int
) -> list[Report]:
    """Run a scenario's traces and print their figures; None: as many replicas, and the policies, that it names."""
    scenario = SCENARIOS[name]
    replicas = replicas or scenario.replicas
    load = replicas * relative_speed(shape, SHAPES["llama-8b"], H200)
    print(f"\n## {name}: {scenario.summary} ({shape.name}, {replicas} × {H200.name}, seed {seed})\n")
    reports = [
        simulate(trace, shape, replicas, scenario.num_blocks, policy)
        for trace in scenario.traces(seed, load)
        for policy in policies or scenario.policies
    ]
    print(main_table(reports))
    print(groups_table(reports))
    if scenario.compare is not None:
        print(comparison_table(scenario.compare({report.trace: report for report in reports})))
    return reports


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="simulate the scheduler")
    parser.add_argument("scenario", choices=["all", *SCENARIOS])
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-8b", help="model that is served")
    parser.add_argument("--replicas", type=int, help="workers, ten to a scheduler; the load grows with them")
    parser.add_argument("--policy", choices=list(POLICIES), help="how a replica is chosen")
    parser.add_argument("--seed", type=int, default=0, help="of the trace")
    parser.add_argument("--out", type=Path, help="file to write the figures to, JSON")
    arguments = parser.parse_args()
    names = list(SCENARIOS) if arguments.scenario == "all" else [arguments.scenario]
    shape = SHAPES[arguments.shape]
    figures = {}
    policies = None if arguments.policy is None else (arguments.policy,)
    for name in names:
        reports = run_scenario(name, shape, arguments.replicas, policies, arguments.seed)
        figures[name] = [asdict(report) for report in reports]
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        setup = {"shape": shape.name, "gpu": asdict(H200), "seed": arguments.seed}
        text = json.dumps(_without_nan({**setup, "scenarios": figures}), indent=2, allow_nan=False)
        arguments.out.write_text(text + "\n")


def _without_nan(value: object) -> object:
    """The same with null for figures that were not measured: JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and isnan(value) else value


if __name__ == "__main__":
    main()
