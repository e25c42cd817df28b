"""CPU of the scheduler per decode step, and steps per second over the real stream, the model costing nothing.

    python -m benchmarks.scheduler_cpu

Part one drives the pure core in this process: `apply` of a step's result, `schedule` of the next command, and
what goes to clients, one decode step a command, at 256 and 1,024 running sequences; the fake worker's own time
is left out. Part two runs `scheduler_svc` and `benchmarks.instant_worker` as processes, with 256 sequences and
two commands in flight, and counts the worker's steps over wall time and the scheduler's CPU.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from benchmarks.instant_rows import InstantRows
from benchmarks.instant_worker import InstantWorkerSettings
from quire.packing import pack_int32
from quire.rpc.channel import open_channel
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, types_pb2, worker_pb2
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.scheduler import Scheduler

REPOSITORY = Path(__file__).parents[1]
PROMPT_TOKENS = 32


def token_request(number: int, max_tokens: int) -> scheduler_pb2.TokenRequest:
    """A greedy request that runs to its limit."""
    return scheduler_pb2.TokenRequest(
        request_id=str(number),
        prompt_token_ids=pack_int32([(number * 31 + position) % 30000 for position in range(PROMPT_TOKENS)]),
        sampling=types_pb2.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, seed=number),
    )


def core_cpu(num_sequences: int, num_steps: int) -> dict[str, float]:
    """Milliseconds of CPU per decode step of the pure core at this many running sequences."""
    settings = InstantWorkerSettings.model_construct(
        **{name: field.get_default() for name, field in InstantWorkerSettings.model_fields.items()}
    )
    description = settings.description()
    description.max_rows, description.num_blocks = num_sequences, 64 * num_sequences
    scheduler = Scheduler(Limits(max_decode_steps=1, max_queue_sequences=4096))
    scheduler.attach("worker", description, 1, 0.0)
    worker = InstantRows(description)
    for number in range(num_sequences):
        scheduler.add(1, number, token_request(number, num_steps * 4), number, 0.0)
    in_flight: deque[worker_pb2.StepResult] = deque()
    times: list[float] = []
    now = 0.0
    while len(times) < num_steps:
        now += 0.005
        cpu = time.process_time()
        if in_flight:
            scheduler.apply("worker", in_flight.popleft(), now)
        commands = []
        while (command := scheduler.schedule("worker", now)) is not None:
            commands.append(command)
        for batch in scheduler.take_updates().values():
            batch.SerializeToString()
        cpu = time.process_time() - cpu
        if scheduler.replicas["worker"].rows.num_free == 0 and all(not c.prefill_rows for c in commands):
            times.append(cpu * 1e3)
        in_flight += [worker.execute(command) for command in commands]
    ordered = sorted(times)
    return {
        "sequences": num_sequences,
        "steps": num_steps,
        "median_ms": round(statistics.median(ordered), 4),
        "mean_ms": round(statistics.mean(ordered), 4),
        "p99_ms": round(ordered[int(0.99 * len(ordered))], 4),
    }


@contextlib.contextmanager
def processes(directory: str, max_rows: int):
    """The scheduler and the instant worker, killed at the end."""
    worker, scheduler = f"unix:{directory}/worker", f"unix:{directory}/scheduler"
    commands = [
        ["benchmarks.instant_worker", "--listen", worker, "--max-rows", str(max_rows)],
        ["scheduler_svc", "--listen", scheduler, "--workers", worker, "--max-decode-steps", "1"],
    ]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    try:
        yield scheduler, started[1].pid
    finally:
        for process in started:
            process.send_signal(signal.SIGKILL)
            process.wait()


async def stream_rate(num_sequences: int, num_tokens: int) -> dict[str, float]:
    """Steps per second with two commands in flight, and the scheduler process's CPU per step."""
    with (
        tempfile.TemporaryDirectory(prefix="quire-bench-") as directory,
        processes(directory, num_sequences) as (
            address,
            pid,
        ),
    ):
        async with open_channel(address) as channel:
            stub = scheduler_pb2_grpc.SchedulerStub(channel)
            call = stub.Session(wait_for_ready=True)
            messages = aiter(call)
            while (await anext(messages)).announcement.state != types_pb2.SERVICE_STATE_READY:
                pass
            for number in range(num_sequences):
                submit = scheduler_pb2.SchedulerSessionRequest.Submit(
                    handle=number, request=token_request(number, num_tokens)
                )
                await call.write(scheduler_pb2.SchedulerSessionRequest(submit=submit))
            started, cpu, tokens, ended = time.monotonic(), _cpu_s(pid), 0, 0
            while ended < num_sequences:
                batch = (await anext(messages)).batch
                tokens += len(batch.token_ids) // 4
                ended += len(batch.ends)
            seconds, cpu = time.monotonic() - started, _cpu_s(pid) - cpu
            call.cancel()
    steps = tokens / num_sequences
    return {
        "sequences": num_sequences,
        "steps_per_s": round(steps / seconds),
        "tokens_per_s": round(tokens / seconds),
        "scheduler_cpu_ms_per_step": round(1e3 * cpu / steps, 3),
    }


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print both parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400, help="decode steps measured")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    core = [core_cpu(sequences, arguments.steps) for sequences in (256, 1024)]
    print("pure core, one decode step a command: CPU per step")
    for row in core:
        print(f"  {row['sequences']:>5} sequences: median {row['median_ms']} ms, p99 {row['p99_ms']} ms")
    stream = asyncio.run(stream_rate(256, 1500))
    print("through gRPC, two commands in flight, one decode step each:")
    print(
        f"  {stream['sequences']:>5} sequences: {stream['steps_per_s']} steps/s, {stream['tokens_per_s']} tokens/s, "
        f"{stream['scheduler_cpu_ms_per_step']} ms of scheduler CPU per step (gRPC included)"
    )
    if arguments.json:
        machine = {
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
        }
        arguments.json.write_text(
            json.dumps({"machine": machine, "core": core, "stream": stream}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
