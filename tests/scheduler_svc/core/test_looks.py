"""What a replica was found able to do for a waiting sequence counts until something changes there."""

from collections import deque

import pytest

from benchmarks.instant_rows import InstantRows
from quire.packing import pack_int32
from quire.v1 import scheduler_pb2, types_pb2, worker_pb2
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.looks import look
from scheduler_svc.core.replica import InFlight, Replica
from scheduler_svc.core.scheduler import Scheduler

_NAMES = ("a", "b")


class Crowd:
    """Two small replicas, and more requests under shared prefixes than they have room for."""

    def __init__(self) -> None:
        model = types_pb2.ModelDescription(name="m", revision="r", vocab_size=1000, max_model_len=128)
        self.scheduler = Scheduler(Limits(max_decode_steps=2))
        self.rows: dict[str, InstantRows] = {}
        self.results: dict[str, deque[worker_pb2.StepResult]] = {name: deque() for name in _NAMES}
        for epoch, name in enumerate(_NAMES, start=1):
            description = worker_pb2.WorkerDescription(
                worker_id=name,
                worker_epoch=epoch,
                model=model,
                block_size=4,
                num_blocks=48,
                max_rows=6,
                max_step_tokens=32,
                max_decode_steps=2,
            )
            self.rows[name] = InstantRows(description)
            self.scheduler.attach(name, description, 1, 0.0)
        for number in range(40):
            prompt = [*range(100 * (number % 3), 100 * (number % 3) + 20), 900 + number]
            asked = scheduler_pb2.TokenRequest(
                request_id=str(number),
                prompt_token_ids=pack_int32(prompt),
                tenant="xy"[number % 2],
                sampling=types_pb2.SamplingParams(temperature=0.0, max_tokens=20),
            )
            self.scheduler.add(1, number, asked, 0, 0.0)

    def play(self) -> None:
        """Until all have ended, with everything held up to scrutiny after every event."""
        now, working = 0.0, True
        while working:
            working = False
            for name in _NAMES:
                now += 0.01
                while (command := self.scheduler.schedule(name, now)) is not None:
                    self.results[name].append(self.rows[name].execute(command))
                    self.scheduler.check_integrity()
                if self.results[name]:
                    working = True
                    self.scheduler.apply(name, self.results[name].popleft(), now)
                    self.scheduler.check_integrity()
        assert self.scheduler.num_requests == 0


def test_every_change_at_a_replica_is_seen_by_those_that_wait() -> None:
    Crowd().play()


def test_a_change_that_is_not_seen_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    note_sent = Replica.note_sent

    def note_and_keep(self: Replica, record: InFlight) -> None:
        looks = dict(self.looks)
        note_sent(self, record)
        self.looks.update(looks)

    monkeypatch.setattr(Replica, "note_sent", note_and_keep)
    with pytest.raises(AssertionError, match="changed unnoticed"):
        Crowd().play()


def test_an_idle_replica_does_not_remember_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scheduler_svc.core.looks._MAX_LOOKS", 3)
    crowd = Crowd()
    replica = crowd.scheduler.replicas["b"]
    for request in crowd.scheduler.requests():
        look(replica, request.sequences[0])
        assert len(replica.looks) <= 3
