"""The Scheduler service: sessions with tokenizers, calls for outside clients, and the process around them."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog

from quire.errors import Internal, InvalidRequest, QuireError, from_proto
from quire.packing import unpack_uint32
from quire.rpc.server import RpcServer
from quire.rpc.session import Outbox
from quire.service import Shutdown
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, types_pb2
from scheduler_svc import metrics
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.token_batch import merge
from scheduler_svc.settings import SchedulerSettings
from scheduler_svc.step_loop import StepLoop

log = structlog.get_logger()

SERVICE_NAME = scheduler_pb2.DESCRIPTOR.services_by_name["Scheduler"].full_name
Context = grpc.aio.ServicerContext[Any, Any]
# Messages, one per step: a peer that is this far behind is not coming back.
_MAX_PENDING = 4096

_Response = scheduler_pb2.SchedulerSessionResponse


def _coalesce(messages: list[_Response]) -> _Response:
    """One message with all tokens in order, and the newest announcement."""
    batches = [message.batch for message in messages if message.HasField("batch")]
    merged = _Response(batch=merge(batches) if batches else None)
    for message in messages:
        if message.HasField("announcement"):
            merged.announcement.CopyFrom(message.announcement)
    return merged


class SchedulerServicer(scheduler_pb2_grpc.SchedulerServicer):
    """Listens at once; takes requests when a worker is connected."""

    def __init__(self, settings: SchedulerSettings, shutdown: Shutdown) -> None:
        self._shutdown = shutdown
        self.rpc = RpcServer(settings.listen)
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(self, self.rpc.server)
        self._epoch = time.time_ns()
        self._step_loop = StepLoop(
            settings.workers,
            settings.limits(),
            worker_hang_s=settings.worker_hang_s,
            on_change=self._announce,
            on_fault=self._fail,
        )
        self._sessions: set[Outbox[_Response]] = set()
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # -- the process

    async def start(self) -> None:
        """Listen, and look for the workers."""
        await self.rpc.start([SERVICE_NAME])
        self._tasks = [
            asyncio.create_task(self._step_loop.run(), name="workers"),
            asyncio.create_task(self._report_health(), name="health"),
        ]

    async def drain(self) -> None:
        """Refuse new requests; return when those admitted have ended."""
        self._step_loop.draining = True
        self._announce()
        await self._step_loop.drained()

    async def stop(self) -> None:
        """Close everything."""
        await self.rpc.stop(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _state(self) -> types_pb2.ServiceState.ValueType:
        if self._step_loop.draining:
            return types_pb2.SERVICE_STATE_DRAINING
        return types_pb2.SERVICE_STATE_READY if self._step_loop.ready else types_pb2.SERVICE_STATE_STARTING

    def _announcement(self) -> scheduler_pb2.SchedulerAnnouncement:
        return scheduler_pb2.SchedulerAnnouncement(
            state=self._state(),
            model=self._step_loop.model,
            scheduler_epoch=self._epoch,
            load_progress=self._step_loop.load_progress,
        )

    def _fail(self, error: BaseException) -> None:
        log.critical("the scheduler's core failed", exc_info=error)
        self._shutdown.fail(f"the scheduler's core failed: {error}")

    async def _report_health(self) -> None:
        """SERVING while requests would be: a worker is connected, and nobody asked us to leave."""
        while True:
            self._changed.clear()
            await self.rpc.set_serving(self._state() == types_pb2.SERVICE_STATE_READY)
            await self._changed.wait()

    def _announce(self) -> None:
        self._changed.set()
        for outbox in self._sessions:
            outbox.put(_Response(announcement=self._announcement()))

    # -- the calls

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[scheduler_pb2.SchedulerSessionRequest], context: Context
    ) -> AsyncIterator[_Response]:
        """One tokenizer process; when it is gone, its requests are."""
        outbox: Outbox[_Response] = Outbox(_coalesce, max_pending=_MAX_PENDING)
        client = self._step_loop.open_client(lambda batch: outbox.put(_Response(batch=batch)))
        self._sessions.add(outbox)
        metrics.sessions.set(len(self._sessions))
        outbox.put(_Response(announcement=self._announcement()))
        reader = asyncio.create_task(self._read(request_iterator, client, outbox), name="tokenizer session")
        try:
            async for message in outbox:
                yield message
        finally:
            reader.cancel()
            self._sessions.discard(outbox)
            metrics.sessions.set(len(self._sessions))
            self._step_loop.close_client(client)

    async def _read(
        self,
        requests: AsyncIterator[scheduler_pb2.SchedulerSessionRequest],
        client: int,
        outbox: Outbox[_Response],
    ) -> None:
        try:
            async for request in requests:
                kind = request.WhichOneof("kind")
                if kind == "submit":
                    self._submit(client, request.submit, outbox)
                elif kind == "cancel":
                    self._step_loop.cancel(client, request.cancel.handle)
                elif kind == "finish":
                    self._step_loop.finish(client, request.finish.handle, request.finish.sequence)
        finally:
            outbox.close()

    def _submit(
        self, client: int, submit: scheduler_pb2.SchedulerSessionRequest.Submit, outbox: Outbox[_Response]
    ) -> None:
        """A request that is refused ends alone; the session goes on."""
        try:
            self._step_loop.submit(client, submit.handle, submit.request)
        except Exception as problem:
            if isinstance(problem, QuireError):
                error = problem
            else:
                # The boundary of one request: whatever is wrong with it stays its own.
                log.error("a request could not be taken", exc_info=problem)
                error = Internal("the request could not be taken: an internal error, which was logged")
            metrics.count_rejection(types_pb2.ErrorCode.Name(error.code))
            end = scheduler_pb2.SequenceEnd(
                handle=submit.handle, finish_reason=types_pb2.FINISH_REASON_ERROR, error=error.to_proto()
            )
            outbox.put(_Response(batch=scheduler_pb2.TokenBatch(ends=[end])))

    async def Generate(  # noqa: N802
        self, request: scheduler_pb2.TokenRequest, context: Context
    ) -> AsyncIterator[scheduler_pb2.TokenUpdate]:
        """One request of an outside client; leaving the stream cancels it."""
        outbox: Outbox[scheduler_pb2.TokenBatch] = Outbox(merge, max_pending=_MAX_PENDING)
        client = self._step_loop.open_client(outbox.put)
        try:
            try:
                self._step_loop.submit(client, 0, request)
            except QuireError as error:
                metrics.count_rejection(types_pb2.ErrorCode.Name(error.code))
                raise
            num_open = request.n or 1
            async for batch in outbox:
                for update in _updates(batch):
                    yield update
                for end in batch.ends:
                    if end.HasField("error"):
                        raise from_proto(end.error)
                    num_open -= 1
                if num_open == 0:
                    return
        finally:
            self._step_loop.close_client(client)

    async def GetStatus(  # noqa: N802
        self, request: types_pb2.GetStatusRequest, context: Context
    ) -> scheduler_pb2.SchedulerStatus:
        """What the scheduler and its replicas are doing."""
        scheduler = self._step_loop.scheduler
        replicas = [_replica_status(replica) for replica in scheduler.replicas.values()]
        return scheduler_pb2.SchedulerStatus(
            state=self._state(),
            model=self._step_loop.model,
            sequences_running=sum(replica.sequences_running for replica in replicas),
            sequences_waiting=len(scheduler.queue),
            tokens_waiting=scheduler.queue.num_tokens,
            replicas=replicas,
            scheduler_epoch=self._epoch,
        )

    async def Drain(  # noqa: N802
        self, request: types_pb2.DrainRequest, context: Context
    ) -> types_pb2.DrainResponse:
        """Begin to leave."""
        if not request.timeout_s >= 0:
            raise InvalidRequest("timeout_s must be 0 or more", param="timeout_s")
        self._shutdown.request("Drain was called")
        return types_pb2.DrainResponse(num_requests=self._step_loop.scheduler.num_requests)


def _updates(batch: scheduler_pb2.TokenBatch) -> list[scheduler_pb2.TokenUpdate]:
    """What one client's batch says of its one request: an update per entry, ends in the last of each sequence."""
    num_entries = len(batch.handles) // 4
    sequences = unpack_uint32(batch.sequences).tolist() if batch.sequences else [0] * num_entries
    counts = unpack_uint32(batch.num_tokens).tolist() if batch.num_tokens else [1] * num_entries
    logprobs = {item.entry: item.logprobs for item in batch.logprobs}
    updates: list[scheduler_pb2.TokenUpdate] = []
    last: dict[int, scheduler_pb2.TokenUpdate] = {}
    start = 0
    for entry, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
        data = batch.token_ids[4 * start : 4 * (start + count)]
        update = scheduler_pb2.TokenUpdate(sequence=sequence, token_ids=data, logprobs=logprobs.get(entry))
        start += count
        updates.append(update)
        last[sequence] = update
    for end in batch.ends:
        if end.HasField("error"):
            continue
        if end.sequence not in last:
            last[end.sequence] = scheduler_pb2.TokenUpdate(sequence=end.sequence)
            updates.append(last[end.sequence])
        last[end.sequence].finish_reason = end.finish_reason
        last[end.sequence].usage.CopyFrom(end.usage)
    return updates


def _replica_status(replica: Replica) -> scheduler_pb2.ReplicaStatus:
    pool = replica.pool
    return scheduler_pb2.ReplicaStatus(
        worker=replica.description,
        connected=replica.connected,
        rows_used=replica.rows.max_rows - replica.rows.num_free,
        blocks_free=pool.num_free,
        blocks_used=pool.num_blocks - pool.num_free,
        blocks_cached=pool.num_cached,
        last_step_sent=replica.last_step_sent,
        last_step_retired=replica.last_step_retired,
        sequences_running=replica.num_running(),
    )
