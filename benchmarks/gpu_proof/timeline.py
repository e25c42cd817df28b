"""What the GPU does while 256 rows decode under the real scheduler over gRPC: how long it waits between steps.

Twice over. Without a profiler: the seconds that the worker's CUDA events count for its commands, beside the clock; what
is left over is everything that commands, scheduling and messages cost the GPU. Then with one: the worker traces a
window of its steps (SIGUSR2), and in the trace the gap is from the end of a step's last kernel to the start of the next
one's first, whatever small copies lie between.
"""

import asyncio
import gzip
import json
import os
import signal
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.gpu_proof.report import Report
from benchmarks.gpu_proof.services import Services, request_name, running_services, say
from benchmarks.gpu_proof.steps_trace import StepsTrace, read_events
from benchmarks.gpu_proof.token_session import Live, token_request
from benchmarks.gpu_proof.trace_plot import draw
from quire.v1 import types_pb2

GAP_LIMIT_US = 20.0
_KEPT_STEPS = 5
_SETTLE_S = 1.0
_LONGEST_WAIT_S = 120.0


@dataclass(frozen=True)
class TimelineOptions:
    """What decodes."""

    model: str
    device: str
    batch: int
    prompt_len: int
    output_len: int
    """Long enough that no row ends meanwhile."""
    seconds: float
    """Of the measurement without a profiler."""
    worker: Mapping[str, object]
    out: Path


@dataclass(frozen=True)
class Undisturbed:
    """What was counted without a profiler."""

    steps_per_s: float
    tokens_per_s: float
    step_ms: float
    gpu_share: float
    """Of the clock, that the worker's events were around work."""
    between_us: float
    """The rest, per command."""


async def prove_timeline(options: TimelineOptions) -> Report:
    """Run, trace, draw, and report."""
    with tempfile.TemporaryDirectory(prefix="quire-proof-") as folder:
        worker = {"device": options.device, "profile_dir": folder, **options.worker}
        worker["max_model_len"] = options.prompt_len + options.output_len
        async with running_services(options.model, worker, {"worker_hang_s": _LONGEST_WAIT_S}) as services:
            requests = _submit(services, options)
            await services.local.guard(_all_decode(requests))
            await asyncio.sleep(_SETTLE_S)
            counted = await _count(services, requests, options.seconds)
            os.kill(services.local.pids["gpu_worker"], signal.SIGUSR2)
            path = await services.local.guard(_trace_in(Path(folder)))
            is_unfinished = services.session.num_live == len(requests)
            events = await asyncio.to_thread(read_events, path)
            services.session.cancel_all()
            description = services.description
    trace = StepsTrace(events)
    kv = "fp8" if "kv_fp8" in description.capabilities else "of the weights"
    return report_timeline(options, counted, trace, is_unfinished=is_unfinished, kv=kv)


def _submit(services: Services, options: TimelineOptions) -> list[Live]:
    rng, vocab_size = Random(0), services.session.model.vocab_size
    requests = []
    for number in range(options.batch):
        prompt = [rng.randrange(10, vocab_size) for _ in range(options.prompt_len)]
        sampling = types_pb2.SamplingParams(
            temperature=0, seed=number, max_tokens=options.output_len, ignore_eos=True
        )
        requests.append(services.session.submit(token_request(request_name(), prompt, sampling)))
    return requests


async def _all_decode(requests: list[Live]) -> None:
    while any(request.num_tokens == 0 for request in requests):
        await asyncio.sleep(0.02)
        for request in requests:
            if request.done.done():
                request.done.result()


async def _count(services: Services, requests: list[Live], seconds: float) -> Undisturbed:
    async def now() -> tuple[float, dict[str, float], int, int]:
        metrics = await services.worker_metrics()
        steps = (await services.worker_status()).steps_executed
        return time.perf_counter(), metrics, steps, sum(request.num_tokens for request in requests)

    at, before, steps, tokens = await now()
    await asyncio.sleep(seconds)
    end, after, last_steps, last_tokens = await now()
    clock = end - at
    busy = after["quire_worker_step_seconds_sum"] - before["quire_worker_step_seconds_sum"]
    commands = after["quire_worker_commands_total"] - before["quire_worker_commands_total"]
    return Undisturbed(
        steps_per_s=(last_steps - steps) / clock,
        tokens_per_s=(last_tokens - tokens) / clock,
        step_ms=1e3 * clock / max(1, last_steps - steps),
        gpu_share=busy / clock,
        between_us=1e6 * (clock - busy) / max(1.0, commands),
    )


async def _trace_in(directory: Path) -> Path:
    deadline = time.monotonic() + _LONGEST_WAIT_S
    while not (found := await asyncio.to_thread(lambda: list(directory.glob("quire-steps-*.json.gz")))):
        if time.monotonic() > deadline:
            raise TimeoutError("the worker wrote no trace")
        await asyncio.sleep(0.05)
    return found[0]


def report_timeline(
    options: TimelineOptions, counted: Undisturbed, trace: StepsTrace, *, is_unfinished: bool, kv: str
) -> Report:
    """The report; trace and picture are saved beside where it goes."""
    model = Path(options.model).name
    name = f"timeline-{model}" + ("-fp8" if kv == "fp8" else "")
    row: dict[str, object] = {
        "model": model,
        "KV": kv,
        "rows": options.batch,
        "tokens/s": counted.tokens_per_s,
        "ms/step": counted.step_ms,
        "GPU busy": f"{counted.gpu_share:.2%}",
        "us between": counted.between_us,
        "steps traced": len(trace.steps),
    }
    claims = {"every row decoded all the time": is_unfinished}
    details: dict[str, Any] = {"undisturbed": asdict(counted)}
    if options.device != "cpu":
        claims["at least 20 steps were traced"] = len(trace.steps) >= 20
        _save_trace(trace, options.out / name, title=f"{model}, {options.batch} rows")
    if len(trace.steps) >= 2:
        gaps = trace.gaps()
        row |= {"gap p50 us": gaps.p50, "p99": gaps.p99, "max": gaps.most, "of the time": f"{gaps.share:.2%}"}
        claims[f"gaps between steps of at most {GAP_LIMIT_US:g} us"] = gaps.most <= GAP_LIMIT_US
        claims[f"99 % of the gaps at most {GAP_LIMIT_US:g} us"] = gaps.p99 <= GAP_LIMIT_US
        details |= {"gaps": asdict(gaps), "gaps_us": [round(gap, 2) for gap in trace.gaps_us]}
    settings = asdict(options) | {"model": model, "out": str(options.out)}
    return Report(name, settings, [row], claims, details)


def _save_trace(trace: StepsTrace, stem: Path, *, title: str) -> None:
    """All of it, some steps in the middle for a document, and a picture."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    for ending, events in (("full", trace.events), ("steps", trace.middle(_KEPT_STEPS))):
        packed = gzip.compress(json.dumps({"traceEvents": events}).encode(), mtime=0)
        stem.with_name(f"{stem.name}-{ending}.json.gz").write_bytes(packed)
    drawn = draw(trace, stem.with_name(f"{stem.name}.png"), title=title)
    say(f"drew {drawn}" if drawn else "no picture: too few steps, or no matplotlib")
