"""The shell around the core, and its sole owner: events in, commands and batches out."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import grpc

from quire.errors import NotReady
from quire.v1 import scheduler_pb2, types_pb2, worker_pb2
from scheduler_svc import metrics
from scheduler_svc.adoption import AdoptedBlock, blocks_to_attach, checksums
from scheduler_svc.core.limits import Limits
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.scheduler import Scheduler
from scheduler_svc.endings import EndingReporter
from scheduler_svc.flight_recorder import RecordedScheduler
from scheduler_svc.leases import TakeEpoch
from scheduler_svc.patience import Patience
from scheduler_svc.prefix_index import PrefixIndex
from scheduler_svc.redirection import describe
from scheduler_svc.settlement import Settlement
from scheduler_svc.worker_link import WorkerLink

BatchSink = Callable[[scheduler_pb2.TokenBatch], None]


class StepLoop:
    """Belongs to the event loop's thread; nothing here awaits between an event and what follows from it.

    Without an `index` nobody else learns of the workers' blocks.
    `on_change` is called when a worker came, went, or got on with loading. `on_fault` is called once if the core
    failed: its state cannot be trusted then, and the process has to end.
    """

    def __init__(
        self,
        limits: Limits,
        index: PrefixIndex | None,
        settlement: Settlement,
        *,
        worker_hang_s: float,
        flight_record_bytes: int = 0,
        on_change: Callable[[], None],
        on_fault: Callable[[BaseException], None],
    ) -> None:
        self.scheduler = (
            RecordedScheduler(limits, max_bytes=flight_record_bytes)
            if flight_record_bytes
            else Scheduler(limits)
        )
        self.draining = False
        self._worker_hang_s = worker_hang_s
        self._on_change = on_change
        self._on_fault = on_fault
        self._index = index
        self._was_ready = False
        self._links: dict[str, WorkerLink] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._sinks: dict[int, BatchSink] = {}
        self._last_client = 0
        self._pump_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._settlement = settlement
        self._endings = EndingReporter(settlement)
        self._idle = asyncio.Event()
        self._resting: asyncio.Event | None = None

    # -- what the service asks

    @property
    def ready(self) -> bool:
        """Whether a request would be served now."""
        return self.scheduler.serves

    @property
    def model(self) -> types_pb2.ModelDescription | None:
        """The served model, once a worker has described it."""
        abilities = self.scheduler.abilities
        if abilities is None:
            return None
        model = types_pb2.ModelDescription()
        model.CopyFrom(abilities.model)
        # What a sequence can really have: a small KV cache may hold less than the model's context.
        model.max_model_len = abilities.max_total_tokens
        return model

    @property
    def block_size(self) -> int:
        """Tokens per KV block, 0 before a worker has described itself."""
        abilities = self.scheduler.abilities
        return abilities.block_size if abilities is not None else 0

    def dump_flight_record(self, directory: Path) -> Path | None:
        """Write what the recorder has to a new file there; None where nothing is recorded. Raises OSError."""
        if not isinstance(self.scheduler, RecordedScheduler):
            return None
        path = directory / f"quire-flight-{os.getpid()}-{time.time_ns()}.pickle"
        self.scheduler.dump(path)
        return path

    def describe(self, address: str) -> dict[str, Any]:
        """This scheduler's entry in the registry."""
        return describe(self.scheduler, address, draining=self.draining)

    @property
    def load_progress(self) -> float:
        """Share of the weights loaded, of the worker that is furthest."""
        return max((link.load_progress for link in self._links.values()), default=0.0)

    async def at_rest(self) -> None:
        """Return when no row is taken and every command has been answered."""
        self._resting = asyncio.Event()
        self._note_rest()
        await self._resting.wait()

    async def close(self) -> None:
        """Give every stream up; what still ran ends, and is settled so."""
        tasks = list(self._tasks.values())
        for worker in list(self._tasks):
            self.unlease(worker)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._pump()

    async def drained(self) -> None:
        """Return when no request is left; new ones are refused from now on."""
        self.draining = True
        self._note_idle()
        await self._idle.wait()

    # -- clients

    def open_client(self, sink: BatchSink) -> int:
        """A session or call: its batches go to `sink`. Returns its number."""
        self._last_client += 1
        self._sinks[self._last_client] = sink
        return self._last_client

    def close_client(self, client: int) -> None:
        """The client is gone: so are its requests."""
        self._sinks.pop(client, None)
        self.scheduler.cancel_client(client, time.monotonic())
        self._pump_soon()

    def submit(self, client: int, handle: int, request: scheduler_pb2.TokenRequest) -> None:
        """Queue a request. Raises QuireError, and then nothing has changed but that it has a ledger id."""
        if not request.ledger_id:
            request.ledger_id = os.urandom(16).hex()
        if self.draining:
            raise NotReady("the scheduler is shutting down; try again", retry_after_s=1.0)
        seed = int.from_bytes(os.urandom(8), "little")
        self.scheduler.add(client, handle, request, seed, time.monotonic())
        self._pump_soon()

    def cancel(self, client: int, handle: int) -> None:
        """Stop a request."""
        self.scheduler.cancel(client, handle, time.monotonic())
        self._pump_soon()

    def finish(self, client: int, handle: int, sequence: int) -> None:
        """End one sequence whose output is complete."""
        self.scheduler.finish(client, handle, sequence, time.monotonic())
        self._pump_soon()

    # -- workers, as the leases say

    def lease(self, worker: str, address: str, take_epoch: TakeEpoch) -> None:
        """Keep a link to this worker up from now on."""
        link = self._links[worker] = WorkerLink(
            address,
            take_epoch=take_epoch,
            adopt=partial(blocks_to_attach, self.scheduler, worker, self._index),
            on_open=partial(self._worker_opened, worker),
            on_result=partial(self._worker_answered, worker),
            on_close=partial(self._worker_closed, worker),
            on_progress=self._on_change,
            patience=Patience(self._worker_hang_s),
        )
        task = self._tasks[worker] = asyncio.create_task(link.run(), name=f"worker {worker}")
        task.add_done_callback(partial(self._link_ended, worker))

    def unlease(self, worker: str) -> None:
        """Give the link up."""
        if self._index is not None:
            self._index.unfollow(worker)
        self._links.pop(worker)
        self._tasks.pop(worker).cancel()

    def hand_over(self, worker: str) -> None:
        """Move the worker's sequences to the others."""
        if worker in self.scheduler.replicas:
            self.scheduler.drain(worker, time.monotonic())
            self._pump_soon()

    def keep(self, worker: str) -> None:
        """Give the worker sequences again."""
        if worker in self.scheduler.replicas:
            self.scheduler.keep(worker)
            self._pump_soon()

    def is_connected(self, worker: str) -> bool:
        """Whether a worker's stream is open."""
        replica = self.scheduler.replicas.get(worker)
        return replica is not None and replica.connected

    def load_of(self, worker: str) -> int:
        """Rows in use on a worker."""
        replica = self.scheduler.replicas.get(worker)
        return replica.num_rows_taken if replica is not None else 0

    async def checksums(self, worker: str, blocks: Sequence[int]) -> Mapping[int, int]:
        """Checksums of a worker's blocks, as far as it gives them."""
        link = self._links.get(worker)
        if link is None:
            return {}
        try:
            return await checksums(link.stub, list(blocks))
        except (grpc.aio.AioRpcError, ValueError):
            return {}

    def _link_ended(self, worker: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fault(error)
        elif worker not in self._links and worker in self.scheduler.replicas:
            self.scheduler.forget(worker)
            metrics.describe(self.scheduler)
            self._note_change()
            self._pump_soon()

    def _worker_opened(
        self,
        worker: str,
        description: worker_pb2.WorkerDescription,
        lease_epoch: int,
        adopted: list[AdoptedBlock],
    ) -> None:
        self.scheduler.attach(worker, description, lease_epoch, time.monotonic(), adopted)
        if self._index is not None:
            self._index.follow(self.scheduler.replicas[worker])
        metrics.describe(self.scheduler)
        self._note_change()
        self._pump_soon()

    def _worker_answered(self, worker: str, result: worker_pb2.StepResult) -> None:
        """The hot path: once per step and worker."""
        started = time.thread_time()
        stats = self.scheduler.apply(worker, result, time.monotonic())
        self._settlement.note_computed(worker, result.tokens_computed)
        self._pump()
        metrics.observe_step(stats, time.thread_time() - started)

    def _worker_closed(self, worker: str) -> None:
        self.scheduler.detach(worker, time.monotonic())
        self._note_change()
        self._pump_soon()

    def _note_change(self) -> None:
        self._was_ready = self.ready
        self._on_change()

    # -- what follows from events

    def _pump_soon(self) -> None:
        """Once for all events of this turn of the loop: a burst of requests makes one command."""
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump_from_loop)

    def _pump_from_loop(self) -> None:
        try:
            self._pump()
        except Exception as error:
            self._on_fault(error)

    def _pump(self) -> None:
        self._pump_scheduled = False
        now = time.monotonic()
        scheduler = self.scheduler
        scheduler.expire(now)
        for worker, replica in scheduler.replicas.items():
            self._feed(worker, replica, now)
        if self.ready != self._was_ready:
            # The last worker has begun to leave, or stays after all.
            self._note_change()
        for client, batch in scheduler.take_updates().items():
            sink = self._sinks.get(client)
            if sink is not None:
                sink(batch)
        endings = scheduler.take_endings()
        if endings:
            self._endings.report(endings, now)
        metrics.observe_state(scheduler)
        self._set_timer(now)
        self._note_idle()
        self._note_rest()

    def _feed(self, worker: str, replica: Replica, now: float) -> None:
        if not replica.connected or worker not in self._links:
            return
        # Asked without room it has nothing to say, which for each of a burst of requests adds up.
        while replica.has_room and (command := self.scheduler.schedule(worker, now)) is not None:
            self._links[worker].send(command)

    def _set_timer(self, now: float) -> None:
        """Wake when the core says so, even if nobody says anything."""
        wake_at = self.scheduler.wake_at(now)
        if wake_at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = wake_at
        if wake_at < inf:
            delay_s = max(0.0, wake_at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._timer_at = inf
        self._pump_from_loop()

    def _note_idle(self) -> None:
        if self.draining and self.scheduler.num_requests == 0:
            self._idle.set()

    def _note_rest(self) -> None:
        replicas = self.scheduler.replicas.values()
        if self._resting is not None and not any(r.in_flight or r.num_rows_taken for r in replicas):
            self._resting.set()
