"""One scheduler process without its sockets: the core, its streams, and its books."""

import asyncio

from quire.v1 import types_pb2, worker_pb2
from scheduler_svc.adoption import blocks_to_attach
from scheduler_svc.core.limits import Limits
from scheduler_svc.flight_recorder import RecordedScheduler
from tests.scheduler_svc.core.fake_index import FakeIndex
from tests.scheduler_svc.core.fake_worker import FakeStub, FakeWorker, Stream
from tests.scheduler_svc.core.ownership import WitnessedPool


class Shell:
    """Does for the core what the service does around it."""

    def __init__(self, name: str, limits: Limits, index: FakeIndex) -> None:
        self.name = name
        self.scheduler = RecordedScheduler(limits, max_bytes=1 << 30)
        self.streams: dict[str, Stream] = {}
        """Those it believes to be open."""
        self.leaving: set[str] = set()
        """Workers that it is about to hand over."""
        self.admitted: dict[str, int] = {}
        """How many sequences each request let in has."""
        self.endings: dict[tuple[str, int], types_pb2.Usage] = {}
        self.num_computed = 0
        """Positions that its workers said they computed."""
        self._index = index

    # -- workers

    def open(self, worker: FakeWorker, lease_epoch: int, now: float, *, answers: bool) -> None:
        """Open a stream, and take over what the worker's blocks hold."""
        described = worker.rows.description
        name = described.worker_id
        if name in self.streams:
            self.hear(name, now)
        stream = worker.open(lease_epoch)
        # The worker's word is the newest that was sent, not the newest that the scheduler has read.
        told = worker_pb2.WorkerDescription.FromString(described.SerializeToString())
        replica = self.scheduler.replicas.get(name)
        adopted = asyncio.run(
            blocks_to_attach(self.scheduler, name, self._index, FakeStub(worker, answers=answers), told)  # type: ignore[arg-type]
        )
        if replica is not None and self.scheduler.replicas.get(name) is not replica:
            self._index.unfollow(replica)
        self.scheduler.attach(name, told, lease_epoch, now, adopted)
        replica = self.scheduler.replicas[name]
        replica.pool.__class__ = WitnessedPool
        self._index.follow(replica, worker)
        self.streams[name] = stream

    def hear(self, name: str, now: float) -> None:
        """A stream has broken, and this is known now."""
        del self.streams[name]
        self.leaving.discard(name)
        self.scheduler.detach(name, now)

    def let_go(self, name: str, now: float) -> None:
        """The worker is another's."""
        if name in self.streams:
            self.streams[name].close()
            self.hear(name, now)
        if name in self.scheduler.replicas:
            self._index.unfollow(self.scheduler.replicas[name])
            self.scheduler.forget(name)

    def is_rid_of(self, name: str) -> bool:
        """Whether a worker that is to be handed over is empty."""
        replica = self.scheduler.replicas[name]
        return not replica.in_flight and not replica.num_rows_taken

    def die(self) -> None:
        """The process is gone, with what it had not written."""
        for stream in self.streams.values():
            stream.close()
        for replica in self.scheduler.replicas.values():
            self._index.unfollow(replica)

    # -- steps

    def feed(self, name: str, now: float) -> None:
        """Send what there is for a worker."""
        if name not in self.streams:
            return
        while (command := self.scheduler.schedule(name, now)) is not None:
            self.streams[name].send(command)
        replica = self.scheduler.replicas[name]
        assert replica.in_flight or not replica.num_running(), "a replica with sequences on it stands still"

    def take(self, name: str, result: worker_pb2.StepResult, now: float) -> None:
        """A result has come."""
        self.scheduler.apply(name, result, now)
        self.num_computed += result.tokens_computed
        self.streams[name].ownership.retired(result.step_id)

    def settle(self) -> None:
        """Write down what has ended."""
        for ending in self.scheduler.take_endings():
            key = (ending.sequence.request.request_id, ending.sequence.index)
            assert key not in self.endings, "a sequence ended twice"
            self.endings[key] = ending.usage

    # -- checks

    def check_at_rest(self) -> None:
        """Nothing is left behind, everything admitted has ended, and the ledgers add up."""
        for replica in self.scheduler.replicas.values():
            assert replica.rows.num_free == replica.rows.max_rows, "a row leaked"
            assert replica.pool.num_free == replica.pool.num_blocks, "a block leaked"
        for tenant in self.scheduler.tenants:
            assert (tenant.num_active, tenant.num_pending, tenant.num_waiting_tokens) == (0, 0, 0)
        due = {(request_id, index) for request_id, n in self.admitted.items() for index in range(n)}
        assert set(self.endings) == due, "a request never ended"
        computed = sum(usage.computed_tokens for usage in self.endings.values())
        assert computed == self.num_computed, "the ledger does not add up"
