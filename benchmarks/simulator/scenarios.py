"""What is simulated: each scenario is one trace, or several whose figures are compared.

Rates are per replica and stated for llama-8b; another model's are raised by as much as its decode step is faster.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from benchmarks.simulator.report import Report
from benchmarks.simulator.step_time import Gpu, ModelShape, StepWork, step_time_s
from benchmarks.simulator.traces import Draw, Range, Trace, burst, chat, poisson, shared_system
from quire.v1 import types_pb2

_REFERENCE_ROWS = 64
_REFERENCE_CONTEXT = 1024
_BURST_S = 5.0
_BURST_END_S = 13.0
# Requests per second of 576 prompt and 144 output tokens, on average, that one replica gets done in eight seconds each.
_CAPACITY = 75.0

Traces = Callable[[int, float], list[Trace]]
"""Traces for a seed and for how many times as much as one replica with llama-8b is to take."""
Compare = Callable[[Mapping[str, Report]], dict[str, float]]
"""Figures over the reports of all traces, by trace name."""

_ROUTINGS = ("cost", "round_robin", "least_loaded", "longest_prefix")


@dataclass(frozen=True)
class Scenario:
    """Something to simulate."""

    summary: str
    traces: Traces
    replicas: int = 1
    num_blocks: int | None = None
    """KV blocks per replica; None: what fits into the GPU. Fewer stand for a cache that has long been full."""
    policies: tuple[str, ...] = ("cost",)
    """Ways to choose a replica that are compared."""
    compare: Compare | None = None


def relative_speed(shape: ModelShape, reference: ModelShape, gpu: Gpu) -> float:
    """How many times as fast as the reference `shape` decodes 64 rows of 1,024 tokens."""
    positions = _REFERENCE_ROWS * _REFERENCE_CONTEXT
    work = StepWork(_REFERENCE_ROWS, _REFERENCE_ROWS, positions, positions)
    return step_time_s(work, reference, gpu) / step_time_s(work, shape, gpu)


def _poisson(seed: int, load: float) -> list[Trace]:
    arrivals = poisson(Draw(seed), rate=30 * load, duration_s=60, prompt=(128, 1024), output=(32, 256))
    return [Trace("poisson", tuple(arrivals))]


def _chat(seed: int, load: float) -> list[Trace]:
    conversations = chat(
        Draw(seed),
        rate=6 * load,
        duration_s=40,
        turns=(3, 8),
        system=(64, 256),
        message=(32, 256),
        output=(64, 256),
        think_s=8.0,
    )
    return [Trace("chat", tuple(conversations))]


def _shared_system(seed: int, load: float) -> list[Trace]:
    conversations = shared_system(
        Draw(seed),
        rate=30 * load,
        duration_s=60,
        num_systems=32,
        system=(2000, 4000),
        user=(16, 128),
        output=(32, 128),
    )
    return [Trace("shared_system", tuple(conversations))]


def _flood_of(seed: int, load: float, *, rate: float, prompt: Range, output: Range) -> list[Trace]:
    steady = tuple(
        poisson(
            Draw(seed),
            rate=rate * load,
            duration_s=60,
            prompt=prompt,
            output=output,
            tenant="victim",
            group="victim",
        )
    )
    flood = burst(
        Draw(seed + 1),
        at_s=10.0,
        count=round(256 * load),
        prompt=(4000, 8000),
        output=(64, 256),
        tenant="flood",
    )
    return [Trace("alone", steady), Trace("flooded", (*steady, *flood))]


def _flood(seed: int, load: float) -> list[Trace]:
    return _flood_of(seed, load, rate=10, prompt=(128, 2048), output=(64, 256))


def _flood_light(seed: int, load: float) -> list[Trace]:
    return _flood_of(seed, load, rate=4, prompt=(64, 256), output=(32, 96))


def _flood_ratio(reports: Mapping[str, Report]) -> dict[str, float]:
    alone, flooded = (reports[name].groups["victim"].ttft_s for name in ("alone", "flooded"))
    return {
        "victim's p99 TTFT, flooded / alone": flooded.p99 / alone.p99,
        "victim's mean TTFT, flooded / alone": flooded.mean / alone.mean,
    }


def _floor(seed: int, load: float) -> list[Trace]:
    steady = tuple(
        shared_system(
            Draw(seed),
            rate=2 * load,
            duration_s=60,
            num_systems=8,
            system=(2000, 4000),
            user=(16, 128),
            output=(32, 128),
            tenant="victim",
            group="victim",
        )
    )
    flood = poisson(
        Draw(seed + 1),
        rate=6 * load,
        duration_s=60,
        prompt=(4000, 8000),
        output=(64, 256),
        tenant="flood",
        group="flood",
    )
    everybody = (*steady, *flood)
    floor = types_pb2.TenantPolicy(kv_floor=0.2)
    return [
        Trace("alone", steady),
        Trace("no floor", everybody),
        Trace("floor of 20 %", everybody, {"victim": floor}),
    ]


def _tenants(seed: int, load: float) -> list[Trace]:
    lengths = {
        "long prompts": ((4000, 6000), (16, 64)),
        "long outputs": ((64, 128), (512, 1024)),
        "balanced": ((512, 1024), (128, 256)),
        "double weight": ((512, 1024), (128, 256)),
    }
    asked = [
        conversation
        for number, (tenant, (prompt, output)) in enumerate(lengths.items())
        for conversation in burst(
            Draw(seed + number),
            at_s=0.0,
            count=round(256 * load),
            prompt=prompt,
            output=output,
            tenant=tenant,
        )
    ]
    return [
        Trace("tenants", tuple(asked), tenant_policies={"double weight": types_pb2.TenantPolicy(weight=2.0)})
    ]


def _long_prompts(seed: int, load: float) -> list[Trace]:
    short = tuple(
        poisson(Draw(seed), rate=15 * load, duration_s=60, prompt=(64, 512), output=(32, 128), group="short")
    )
    long = poisson(
        Draw(seed + 1), rate=0.8 * load, duration_s=60, prompt=(8000, 15000), output=(32, 128), group="long"
    )
    return [Trace("short only", short), Trace("with long", (*short, *long))]


def _long_prompts_ratio(reports: Mapping[str, Report]) -> dict[str, float]:
    alone, beside = (reports[name].groups["short"].ttft_s for name in ("short only", "with long"))
    return {"short requests' p99 TTFT, with long / without": beside.p99 / alone.p99}


def _behind_burst(seed: int, load: float) -> list[Trace]:
    """Short requests on both sides of the burst keep what the scheduler knows of its speeds fresh."""
    short = tuple(
        replace(
            each, group="short during the burst" if _BURST_S <= each.arrival_s < _BURST_END_S else "short"
        )
        for each in poisson(Draw(seed), rate=10 * load, duration_s=20, prompt=(30, 30), output=(32, 64))
    )
    long = burst(
        Draw(seed + 1),
        at_s=_BURST_S,
        count=round(100 * load),
        prompt=(4000, 4000),
        output=(32, 64),
        tenant="default",
        group="long",
    )
    return [Trace("short only", short), Trace("behind a burst", (*short, *long))]


def _behind_burst_figures(reports: Mapping[str, Report]) -> dict[str, float]:
    alone, behind = (reports[name].groups for name in ("short only", "behind a burst"))
    name = "short during the burst"
    return {
        "short requests' mean TTFT behind the burst, ms": 1e3 * behind[name].ttft_s.mean,
        "their p99, ms": 1e3 * behind[name].ttft_s.p99,
        "their p99 without the burst, ms": 1e3 * alone[name].ttft_s.p99,
        "long requests' p99, ms": 1e3 * behind["long"].ttft_s.p99,
    }


def _deadlines(seed: int, load: float) -> list[Trace]:
    asked = poisson(
        Draw(seed),
        rate=120 * load,
        duration_s=30,
        prompt=(128, 1024),
        output=(32, 256),
        timeout_s=(2.0, 20.0),
    )
    return [Trace("deadlines", tuple(asked))]


def _overload(seed: int, load: float) -> list[Trace]:
    def times(factor: float) -> Trace:
        asked = poisson(
            Draw(seed),
            rate=_CAPACITY * factor * load,
            duration_s=20,
            prompt=(128, 1024),
            output=(32, 256),
            timeout_s=(8.0, 8.0),
        )
        return Trace(f"{factor:g} times what can be served", tuple(asked))

    return [times(1.0), times(2.0), times(4.0)]


def _overload_figures(reports: Mapping[str, Report]) -> dict[str, float]:
    goodput = {name: report.done / report.simulated_s for name, report in reports.items()}
    best = max(goodput.values())
    return {f"goodput in percent of the best, {name}": 100 * each / best for name, each in goodput.items()}


def _floor_figures(reports: Mapping[str, Report]) -> dict[str, float]:
    return {
        f"victim's hits in percent, {name}": 100 * report.groups["victim"].hit_rate
        for name, report in reports.items()
    }


def _fleet(seed: int, load: float) -> list[Trace]:
    return [_fleet_trace("fleet", seed, load, duration_s=8)]


def _fleet_1000(seed: int, load: float) -> list[Trace]:
    return [_fleet_trace("fleet of 1,000", seed, load, duration_s=4)]


def _fleet_trace(name: str, seed: int, load: float, duration_s: float) -> Trace:
    conversations = shared_system(
        Draw(seed),
        rate=3 * load,
        duration_s=duration_s,
        num_systems=max(1, round(2 * load)),
        system=(2000, 4000),
        user=(16, 128),
        output=(8, 24),
    )
    return Trace(name, tuple(conversations))


SCENARIOS = {
    "poisson": Scenario("independent requests of mixed lengths", _poisson),
    "chat": Scenario(
        "multi-turn chat, each turn with all before it",
        _chat,
        replicas=4,
        num_blocks=12_000,
        policies=_ROUTINGS,
    ),
    "shared_system": Scenario(
        "short questions under 32 long system prompts",
        _shared_system,
        replicas=4,
        num_blocks=6_000,
        policies=_ROUTINGS,
    ),
    "flood": Scenario(
        "a busy tenant while another sends 256 long prompts at once", _flood, compare=_flood_ratio
    ),
    "flood_light": Scenario(
        "a tenant with few short requests while another sends 256 long prompts at once",
        _flood_light,
        compare=_flood_ratio,
    ),
    "floor": Scenario(
        "a tenant's cached system prompts while another's long prompts pass through",
        _floor,
        num_blocks=12_000,
        compare=_floor_figures,
    ),
    "tenants": Scenario("four tenants with more work than there is time for", _tenants),
    "long_prompts": Scenario(
        "long prompts among short ones of the same tenant", _long_prompts, compare=_long_prompts_ratio
    ),
    "behind_burst": Scenario(
        "prompts of 30 tokens behind 100 of 4,000 that the same tenant sent at once",
        _behind_burst,
        compare=_behind_burst_figures,
    ),
    "deadlines": Scenario("twice the load that can be served, with deadlines", _deadlines),
    "overload": Scenario(
        "one, two and four times the load that can be served, with deadlines of eight seconds",
        _overload,
        compare=_overload_figures,
    ),
    "fleet": Scenario(
        "many schedulers of ten replicas each, short questions under two long system prompts per replica",
        _fleet,
        replicas=100,
        num_blocks=2_000,
        policies=("cost", "round_robin", "least_loaded"),
    ),
    "fleet_1000": Scenario(
        "a hundred schedulers of ten replicas each, four seconds of the same from empty caches",
        _fleet_1000,
        replicas=1000,
        num_blocks=2_000,
        policies=("cost", "round_robin", "least_loaded"),
    ),
}
