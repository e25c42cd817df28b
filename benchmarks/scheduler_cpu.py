"""What a decode step costs the scheduler, with a model that costs nothing.

    python -m benchmarks.scheduler_cpu --rows 256 1024 --json benchmarks/results/scheduler_cpu.json

Three measurements, every command one decode step:

* core: `apply` of a result, `schedule` of the next command and `take_updates`, alone, in CPU seconds of this
  process. The worker is `benchmarks.instant_rows` in the same process, outside the measured span. `wire` is what
  encoding the command and the batch and decoding the result come to, which gRPC does on the same thread. The same
  again with a million blocks of other requests in the prefix cache, out of which the running ones are evicting.
* queue: the same span with ten replicas under one scheduler and a queue that is never empty: 40 shared prompts of
  4,000 tokens with 40 of their own behind, more than the blocks hold. Admission is counted apart, per request.
* stream: the service's own step loop against `benchmarks.instant_worker` in a process of its own, over a real
  gRPC stream on a Unix socket, two commands in flight: steps per second, and this process's CPU seconds per step,
  all threads and gRPC included.
"""

import argparse
import asyncio
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.instant_rows import InstantRows
from benchmarks.instant_worker import InstantWorkerSettings
from benchmarks.scheduler_cpu_queue import measure_queue
from quire.logging import configure_logging
from quire.packing import pack_int32
from quire.redis_client import open_redis
from quire.v1 import scheduler_pb2, types_pb2, worker_pb2
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.scheduler import Scheduler
from scheduler_svc.prefix_index import PrefixIndex
from scheduler_svc.settlement import Settlement
from scheduler_svc.step_loop import StepLoop

_VOCAB_SIZE = 32000
_WARM_UP_STEPS = 50
_CACHED_BLOCKS = 1_000_000


@dataclass(frozen=True)
class CoreCost:
    """CPU of the pure core per decode step, in microseconds."""

    rows: int
    cached_blocks: int
    """Blocks in the prefix cache beside those in use."""
    steps: int
    step_us_mean: float
    step_us_p50: float
    step_us_p99: float
    wire_us_mean: float
    command_bytes_mean: float


@dataclass(frozen=True)
class StreamCost:
    """The step loop over a real stream."""

    rows: int
    steps: int
    steps_per_s: float
    tokens_per_s: float
    scheduler_cpu_us_per_step: float


def worker_settings(rows: int) -> InstantWorkerSettings:
    """A worker that holds `rows` sequences of the benchmark at once."""
    return InstantWorkerSettings(
        vocab_size=_VOCAB_SIZE, max_rows=rows, num_blocks=rows * 256, max_model_len=4096, max_step_tokens=8192
    )


def request(number: int, max_tokens: int) -> scheduler_pb2.TokenRequest:
    """Prompts of 32 to 47 tokens, so that rows pass block boundaries at different steps."""
    generator = np.random.default_rng(number)
    return scheduler_pb2.TokenRequest(
        request_id=str(number),
        prompt_token_ids=pack_int32(generator.integers(0, _VOCAB_SIZE, 32 + number % 16)),
        sampling=types_pb2.SamplingParams(temperature=0.0, max_tokens=max_tokens),
    )


def measure_core(rows: int, steps: int, cached_blocks: int) -> CoreCost:
    """Run `rows` sequences in one process, two commands in flight; count the core's CPU alone."""
    description = worker_settings(rows).description()
    # Nothing else is free, so that every new block costs a cached one.
    description.num_blocks = max(description.num_blocks, cached_blocks)
    worker = InstantRows(description)
    scheduler = Scheduler(Limits(max_queue_sequences=rows, max_decode_steps=1, max_step_tokens=8192))
    cached = [(block.to_bytes(16, "little"), block, (0, 0)) for block in range(cached_blocks)]
    scheduler.attach("worker", description, 1, 0.0, cached)
    for number in range(rows):
        scheduler.add(1, number, request(number, 4000), 0, 0.0)
    in_flight: deque[worker_pb2.StepResult] = deque()
    core_s: list[float] = []
    wire_s: list[float] = []
    command_bytes: list[int] = []
    now, decoding = 0.0, 0
    while decoding < steps + _WARM_UP_STEPS:
        now += 0.005
        started = time.thread_time()
        num_tokens = 0
        if in_flight:
            num_tokens = scheduler.apply("worker", in_flight.popleft(), now).generated_tokens
        commands = []
        while (command := scheduler.schedule("worker", now)) is not None:
            commands.append(command)
        updates = scheduler.take_updates()
        scheduler.take_endings()
        spent_s = time.thread_time() - started
        wire_started = time.thread_time()
        encoded = [command.SerializeToString() for command in commands]
        for batch in updates.values():
            batch.SerializeToString()
        wire_spent_s = time.thread_time() - wire_started
        for command in commands:
            answer = worker.execute(command).SerializeToString()
            wire_started = time.thread_time()
            result = worker_pb2.StepResult.FromString(answer)
            wire_spent_s += time.thread_time() - wire_started
            in_flight.append(result)
        if num_tokens == rows:
            decoding += 1
            if decoding > _WARM_UP_STEPS:
                core_s.append(spent_s)
                wire_s.append(wire_spent_s)
                command_bytes += [len(data) for data in encoded]
    return CoreCost(
        rows=rows,
        cached_blocks=cached_blocks,
        steps=steps,
        step_us_mean=round(float(np.mean(core_s)) * 1e6, 1),
        step_us_p50=round(float(np.percentile(core_s, 50)) * 1e6, 1),
        step_us_p99=round(float(np.percentile(core_s, 99)) * 1e6, 1),
        wire_us_mean=round(float(np.mean(wire_s)) * 1e6, 1),
        command_bytes_mean=round(float(np.mean(command_bytes)), 1),
    )


async def measure_stream(address: str, rows: int, steps: int) -> StreamCost:
    """Drive a worker process through the service's step loop until every sequence has `steps` tokens."""
    limits = Limits(max_queue_sequences=rows, max_decode_steps=1, max_step_tokens=8192)
    ready, done = asyncio.Event(), asyncio.Event()
    marks: dict[str, tuple[float, float, int]] = {}
    ends = 0

    def on_batch(batch: scheduler_pb2.TokenBatch) -> None:
        nonlocal ends
        retired = next(iter(loop.scheduler.replicas.values())).last_step_retired
        if not marks and len(batch.handles) == 4 * rows:
            marks["begin"] = (time.monotonic(), time.process_time(), retired)
        ends += len(batch.ends)
        if ends and "end" not in marks:
            marks["end"] = (time.monotonic(), time.process_time(), retired)
        if ends == rows:
            done.set()

    def on_fault(error: BaseException) -> None:
        raise error

    redis = open_redis("")
    settlement = Settlement(redis, "benchmark")
    index = PrefixIndex(redis, lambda worker, blocks: loop.checksums(worker, blocks))
    loop = StepLoop(limits, index, settlement, worker_hang_s=60.0, on_change=ready.set, on_fault=on_fault)
    parts = [asyncio.create_task(part.run()) for part in (settlement, index)]

    async def take_epoch() -> int:
        return 1

    loop.lease("worker", address, take_epoch)
    while not loop.ready:
        ready.clear()
        await ready.wait()
    client = loop.open_client(on_batch)
    for number in range(rows):
        loop.submit(client, number, request(number, steps))
    await done.wait()
    await loop.close()
    for part in parts:
        part.cancel()
    await asyncio.gather(*parts, return_exceptions=True)
    await redis.aclose()
    (begin, begin_cpu, first), (end, end_cpu, last) = marks["begin"], marks["end"]
    return StreamCost(
        rows=rows,
        steps=last - first,
        steps_per_s=round((last - first) / (end - begin), 1),
        tokens_per_s=round(rows * (last - first) / (end - begin)),
        scheduler_cpu_us_per_step=round((end_cpu - begin_cpu) / (last - first) * 1e6, 1),
    )


def run_stream(rows: int, steps: int) -> StreamCost:
    """Start the worker process, measure, and stop it."""
    settings = worker_settings(rows)
    with tempfile.TemporaryDirectory(prefix="quire-bench-") as folder:
        address = f"unix:{folder}/worker"
        flags = [
            f"--{name.replace('_', '-')}={getattr(settings, name)}"
            for name in ("vocab_size", "max_rows", "num_blocks", "max_model_len", "max_step_tokens")
        ]
        command = [sys.executable, "-m", "benchmarks.instant_worker", "--listen", address, *flags]
        worker = subprocess.Popen([*command, "--log-level", "warning"])
        try:
            return uvloop.run(measure_stream(address, rows, steps))
        finally:
            worker.terminate()
            worker.wait()


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line for line in lines if line.startswith("model name")]
    packages = {name: version(name) for name in ("numpy", "grpcio", "protobuf", "uvloop")}
    return {
        "cpu": models[0].partition(": ")[2] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0]),
        "python": platform.python_version(),
        **packages,
    }


def main() -> None:
    """Measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[256, 1024], help="sequences running")
    parser.add_argument("--steps", type=int, default=1000, help="decode steps per measurement, at most 4000")
    parser.add_argument("--waiting", type=int, nargs="+", default=[50, 500], help="sequences in the queue")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments = parser.parse_args()
    configure_logging("scheduler_cpu", level="error", format="console")
    measured_on = machine()
    print(", ".join(f"{key} {value}" for key, value in measured_on.items()))
    gc.freeze()  # as the service does after its start
    print("| rows | cached blocks | core µs/step mean | p50 | p99 | wire µs/step | command bytes |")
    print("|---|---|---|---|---|---|---|")
    cores = []
    for rows in arguments.rows:
        for cached_blocks in (0, _CACHED_BLOCKS):
            core = measure_core(rows, arguments.steps, cached_blocks)
            cores.append(core)
            print(
                f"| {rows} | {cached_blocks} | {core.step_us_mean} | {core.step_us_p50} | {core.step_us_p99} "
                f"| {core.wire_us_mean} | {core.command_bytes_mean} |",
                flush=True,
            )
    print(
        "\n| replicas | waiting | rows of each | placed per step | core µs/step mean | p50 | p99 | µs per admission |"
    )
    print("|---|---|---|---|---|---|---|---|")
    queues = []
    for waiting in arguments.waiting:
        queue = measure_queue(waiting)
        queues.append(queue)
        print(
            f"| {queue.replicas} | {waiting} | {queue.rows_mean} | {queue.placed_per_step} | {queue.step_us_mean} "
            f"| {queue.step_us_p50} | {queue.step_us_p99} | {queue.admission_us_mean} |",
            flush=True,
        )
    print("\n| rows | stream steps/s | tokens/s | stream CPU µs/step |")
    print("|---|---|---|---|")
    streams = []
    for rows in arguments.rows:
        stream = run_stream(rows, arguments.steps)
        streams.append(stream)
        print(
            f"| {rows} | {stream.steps_per_s} | {stream.tokens_per_s} | {stream.scheduler_cpu_us_per_step} |",
            flush=True,
        )
    if arguments.json is not None:
        figures = {
            name: [asdict(cost) for cost in costs]
            for name, costs in (("core", cores), ("queue", queues), ("stream", streams))
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({"machine": measured_on, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
