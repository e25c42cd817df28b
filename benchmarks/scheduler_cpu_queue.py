"""What a step costs the scheduler while a full queue stands before several replicas: part of `scheduler_cpu`.

Prompts are one of 40 that are shared, of 4,000 tokens, with 40 of their own behind; all of them are more than the
blocks of a replica hold, and 100 tokens are generated for each.
"""

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from benchmarks.instant_rows import InstantRows
from benchmarks.instant_worker import InstantWorkerSettings
from quire.packing import pack_int32
from quire.v1 import scheduler_pb2, types_pb2, worker_pb2
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.scheduler import Scheduler

_VOCAB_SIZE = 32000


@dataclass(frozen=True)
class QueueCost:
    """CPU of the pure core per step of any of several replicas while sequences wait, in microseconds."""

    replicas: int
    waiting: int
    rows_mean: float
    """Rows taken of a replica's 256."""
    placed_per_step: float
    steps: int
    step_us_mean: float
    step_us_p50: float
    step_us_p99: float
    admission_us_mean: float
    """Per request."""


class _QueueRun:
    """Replicas that take turns, each with what the instant worker answers."""

    def __init__(self, replicas: int, waiting: int) -> None:
        description = InstantWorkerSettings(
            vocab_size=_VOCAB_SIZE, max_rows=256, num_blocks=6000, max_model_len=16384, max_step_tokens=8192
        ).description()
        limits = Limits(
            max_queue_sequences=waiting + 1,
            max_queue_tokens=10_000 * waiting,
            max_decode_steps=1,
            max_step_tokens=8192,
        )
        self.scheduler = Scheduler(limits)
        self.workers = {f"worker-{number}": InstantRows(description) for number in range(replicas)}
        for name in self.workers:
            self.scheduler.attach(name, description, 1, 0.0)
        self._results: dict[str, deque[worker_pb2.StepResult]] = {name: deque() for name in self.workers}
        self._random = np.random.default_rng(0)
        self._shared = [self._random.integers(0, _VOCAB_SIZE, 4000) for _ in range(40)]
        self._waiting = waiting
        self.num_requests = 0
        self.admission_s: list[float] = []

    def fill_queue(self, now: float) -> None:
        """Have as many wait as should."""
        while len(self.scheduler.queue) < self._waiting:
            prompt = np.concatenate(
                [self._shared[self._random.integers(40)], self._random.integers(0, _VOCAB_SIZE, 40)]
            )
            asked = scheduler_pb2.TokenRequest(
                request_id=str(self.num_requests),
                prompt_token_ids=pack_int32(prompt),
                sampling=types_pb2.SamplingParams(temperature=0.0, max_tokens=100),
            )
            started = time.thread_time()
            self.scheduler.add(1, self.num_requests, asked, 0, now)
            self.admission_s.append(time.thread_time() - started)
            self.num_requests += 1

    def step(self, name: str, now: float) -> float:
        """One result of a replica and what follows from it; returns the core's CPU seconds."""
        results, scheduler = self._results[name], self.scheduler
        started = time.thread_time()
        if results:
            scheduler.apply(name, results.popleft(), now)
        commands = []
        while (command := scheduler.schedule(name, now)) is not None:
            commands.append(command)
        scheduler.take_updates()
        scheduler.take_endings()
        spent_s = time.thread_time() - started
        for command in commands:
            result = self.workers[name].execute(command)
            result.step_s = 0.01
            results.append(result)
        return spent_s


def measure_queue(waiting: int, replicas: int = 10, rounds: int = 150) -> QueueCost:
    """Let every replica step `rounds` times after as many to warm up, with `waiting` sequences behind them."""
    run = _QueueRun(replicas, waiting)
    spent_s: list[float] = []
    rows: list[int] = []
    now, requests_before = 0.0, 0
    for number in range(2 * rounds):
        if number == rounds:
            requests_before = run.num_requests
            run.admission_s.clear()
        for name in run.workers:
            now += 0.01 / replicas
            run.fill_queue(now)
            step_s = run.step(name, now)
            if number >= rounds:
                spent_s.append(step_s)
                rows.append(run.scheduler.replicas[name].num_rows_taken)
    return QueueCost(
        replicas=replicas,
        waiting=waiting,
        rows_mean=round(float(np.mean(rows)), 1),
        placed_per_step=round((run.num_requests - requests_before) / len(spent_s), 2),
        steps=len(spent_s),
        step_us_mean=round(float(np.mean(spent_s)) * 1e6, 1),
        step_us_p50=round(float(np.percentile(spent_s, 50)) * 1e6, 1),
        step_us_p99=round(float(np.percentile(spent_s, 99)) * 1e6, 1),
        admission_us_mean=round(float(np.mean(run.admission_s or [0.0])) * 1e6, 1),
    )
