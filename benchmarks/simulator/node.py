"""One scheduler and its workers in simulated time, driven as the service's step loop drives them."""

from dataclasses import dataclass

from benchmarks.simulator.worker_model import SimulatedWorker
from quire.v1 import scheduler_pb2, worker_pb2
from scheduler_svc.core.live_requests import Ending
from scheduler_svc.core.scheduler import Scheduler

_CLIENT = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """A result on its way from a worker."""

    at: float
    """When it reaches the scheduler."""
    worker: str
    result: worker_pb2.StepResult


@dataclass(frozen=True, slots=True)
class Pumped:
    """What came of what had happened."""

    answers: list[Answer]
    batch: scheduler_pb2.TokenBatch | None
    endings: list[Ending]


class Node:
    """Every method is an event; `pump` is called once after all events of a moment."""

    def __init__(self, scheduler: Scheduler, workers: dict[str, SimulatedWorker]) -> None:
        self.scheduler = scheduler
        self.workers = workers
        for name, worker in workers.items():
            scheduler.attach(name, worker.description, 1, 0.0)

    def submit(self, handle: int, request: scheduler_pb2.TokenRequest, now: float) -> None:
        """A client asks. Raises QuireError where the scheduler refuses."""
        self.scheduler.add(_CLIENT, handle, request, handle, now)

    def answered(self, answer: Answer) -> None:
        """A worker's result is here."""
        self.scheduler.apply(answer.worker, answer.result, answer.at)

    def pump(self, now: float) -> Pumped:
        """Send every worker what there is for it, and take what there is for clients."""
        scheduler = self.scheduler
        scheduler.expire(now)
        answers = []
        for name, worker in self.workers.items():
            while (command := scheduler.schedule(name, now)) is not None:
                at, result = worker.send(command, now)
                answers.append(Answer(at, name, result))
        batch = scheduler.take_updates().get(_CLIENT)
        return Pumped(answers, batch, scheduler.take_endings())

    def check_at_rest(self) -> None:
        """Assert that nothing is left behind and that workers and ledgers have counted the same."""
        self.scheduler.check_integrity()
        assert self.scheduler.num_requests == 0, "a request never ended"
        assert not any(worker.rows.used.any() for worker in self.workers.values()), "a worker holds a row"
