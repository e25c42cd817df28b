"""The Scheduler service: sessions with tokenizers, calls for outside clients, and the process around them."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import structlog

from quire import telemetry
from quire.errors import Internal, NotReady, Overloaded, QuireError, from_proto
from quire.packing import unpack_uint32
from quire.redis_client import TIMEOUT_S, RedisFailure, open_redis
from quire.registry import Registration, reachable_address
from quire.rpc.server import RpcServer
from quire.rpc.session import Outbox
from quire.service import Shutdown, end_tasks
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, types_pb2
from scheduler_svc import metrics
from scheduler_svc.core.replica import Replica
from scheduler_svc.core.token_batch import merge
from scheduler_svc.core.validation import MAX_LEDGER_ID
from scheduler_svc.leases import Leases
from scheduler_svc.prefix_index import PrefixIndex
from scheduler_svc.redirection import Redirection
from scheduler_svc.settings import SchedulerSettings
from scheduler_svc.settlement import LedgerRecord, Settlement
from scheduler_svc.step_loop import StepLoop

log = structlog.get_logger()

SERVICE_NAME = scheduler_pb2.DESCRIPTOR.services_by_name["Scheduler"].full_name
Context = grpc.aio.ServicerContext[Any, Any]
# Commands take milliseconds; a worker that takes longer loses what it was computing.
_REST_S = 2.0
# Whole pools may have to be written; what is missing then, nobody adopts.
_INDEX_S = 3.0
# Messages, one per step: a peer that is this far behind is not coming back.
_MAX_PENDING = 4096

_Response = scheduler_pb2.SchedulerSessionResponse
Submit = scheduler_pb2.SchedulerSessionRequest.Submit


def _coalesce(messages: list[_Response]) -> _Response:
    """One message with all tokens in order, and the newest announcement."""
    batches = [message.batch for message in messages if message.HasField("batch")]
    merged = _Response(batch=merge(batches) if batches else None)
    for message in messages:
        merged.redirects.extend(message.redirects)
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
        self._redis = open_redis(settings.redis_url)
        self._settlement = Settlement(self._redis, str(self._epoch))
        self._index = PrefixIndex(
            self._redis, lambda worker, blocks: self._step_loop.checksums(worker, blocks)
        )
        self._step_loop = StepLoop(
            settings.limits(),
            # Kept inside this process it would end with it, and so would the pools that it is a copy of.
            self._index if settings.redis_url else None,
            self._settlement,
            worker_hang_s=settings.worker_hang_s,
            flight_record_bytes=settings.flight_record_bytes,
            on_change=self._announce,
            on_fault=self._fail,
        )
        self._settings = settings
        self._sessions: dict[int, Outbox[_Response]] = {}
        self._asking: dict[tuple[int, int], asyncio.Task[None]] = {}
        """Requests for which other schedulers are being looked at, by client and handle."""
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    # -- the process

    async def start(self) -> None:
        """Listen, and look for the workers."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, self._dump_flight_record)
        await self.rpc.start([SERVICE_NAME])
        self._address = self._settings.advertise or reachable_address(self.rpc.address)
        static = {address: address for address in self._settings.workers}
        self._leases = Leases(self._redis, self._address, self._step_loop, static=static)
        self._redirection = Redirection(self._redis, self._index, self._address)
        self._registration = Registration(
            self._redis, "scheduler", self._address, lambda: self._step_loop.describe(self._address)
        )
        parts = {
            "leases": self._leases.run,
            "registration": self._registration.run,
            "redirection": self._redirection.run,
            "prefix index": self._index.run,
            "settlement": self._settlement.run,
            "health": self._report_health,
        }
        for name, run in parts.items():
            task = asyncio.create_task(run(), name=name)
            task.add_done_callback(self._part_ended)
            self._tasks.append(task)

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def drain(self) -> None:
        """Refuse new requests; return when those admitted have ended."""
        self._step_loop.draining = True
        self._announce()
        await self._step_loop.drained()

    async def stop(self) -> None:
        """Close everything; what others need is in Redis then, and the workers are theirs."""
        if not self._tasks:  # it could not listen
            await self._redis.aclose()
            return
        await self.rpc.stop(0)
        await end_tasks([*self._tasks, *self._asking.values()])
        try:
            # What the workers have computed by now comes into the ledger.
            async with asyncio.timeout(_REST_S):
                await self._step_loop.at_rest()
        except TimeoutError:
            log.warning("commands in flight are given up")
        try:
            # First what nobody could find again.
            await self._settlement.flush()
            async with asyncio.timeout(_INDEX_S):
                await self._index.flush()
        except RedisFailure as error:
            log.warning(
                "redis is away: the last of the ledger or the index is missing there", error=str(error)
            )
        await self._step_loop.close()
        try:
            await self._settlement.flush()
            async with asyncio.timeout(TIMEOUT_S):
                await self._leases.close()
                await self._registration.withdraw()
        except RedisFailure as error:
            log.warning(
                "redis is away: others learn of our end by expiry",
                lost_ledger_records=self._settlement.num_unsettled,
                error=str(error),
            )
        await self._redis.aclose()

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
            takes_more=True,
        )

    def _fail(self, error: BaseException) -> None:
        log.critical("the scheduler's core failed", exc_info=error)
        self._dump_flight_record()
        self._shutdown.fail(f"the scheduler's core failed: {error}")

    def _dump_flight_record(self) -> None:
        try:
            path = self._step_loop.dump_flight_record(Path(self._settings.flight_record_dir))
        except OSError as error:
            log.error("the flight record could not be written", error=str(error))
            return
        if path is not None:
            log.warning("flight record written", path=str(path))

    async def _report_health(self) -> None:
        """SERVING while requests would be; the process itself also without a worker: a standby is as it should be."""
        while True:
            self._changed.clear()
            state = self._state()
            await self.rpc.set_serving(
                state == types_pb2.SERVICE_STATE_READY, able=state != types_pb2.SERVICE_STATE_DRAINING
            )
            await self._changed.wait()

    def _announce(self) -> None:
        self._changed.set()
        for outbox in self._sessions.values():
            outbox.put(_Response(announcement=self._announcement()))

    # -- the calls

    async def Session(  # noqa: N802
        self, request_iterator: AsyncIterator[scheduler_pb2.SchedulerSessionRequest], context: Context
    ) -> AsyncIterator[_Response]:
        """One tokenizer process; when it is gone, its requests are."""
        outbox: Outbox[_Response] = Outbox(_coalesce, max_pending=_MAX_PENDING)
        client = self._step_loop.open_client(lambda batch: outbox.put(_Response(batch=batch)))
        self._sessions[client] = outbox
        metrics.sessions.set(len(self._sessions))
        outbox.put(_Response(announcement=self._announcement()))
        reader = asyncio.create_task(self._read(request_iterator, client, outbox), name="tokenizer session")
        try:
            async for message in outbox:
                yield message
        finally:
            reader.cancel()
            del self._sessions[client]
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
                for one in (request, *request.more):
                    self._hear(client, one, outbox)
        finally:
            outbox.close()

    def _hear(
        self, client: int, request: scheduler_pb2.SchedulerSessionRequest, outbox: Outbox[_Response]
    ) -> None:
        kind = request.WhichOneof("kind")
        if kind == "submit":
            self._take(client, request.submit, outbox)
        elif kind == "cancel":
            self._cancel(client, request.cancel.handle)
        elif kind == "finish":
            self._finish(client, request.finish.handle, request.finish.sequence)

    def _cancel(self, client: int, handle: int) -> None:
        asking = self._asking.get((client, handle))
        if asking is not None:
            asking.cancel()
        self._step_loop.cancel(client, handle)

    def _finish(self, client: int, handle: int, sequence: int) -> None:
        asking = self._asking.get((client, handle))
        if asking is None:
            self._step_loop.finish(client, handle, sequence)
        else:
            # A request that is resumed, and this sequence of it has ended already.
            asking.add_done_callback(lambda _: self._step_loop.finish(client, handle, sequence))

    def _take(self, client: int, submit: Submit, outbox: Outbox[_Response]) -> None:
        """Queue a request here, or find out first whether another scheduler serves it better."""
        if submit.request.redirected or self._redirection.is_alone:
            self._submit(client, submit, outbox)
            return
        key = (client, submit.handle)
        task = asyncio.create_task(self._ask_around(client, submit, outbox), name="redirection")
        self._asking[key] = task
        task.add_done_callback(lambda _: self._asking.pop(key, None))

    async def _ask_around(self, client: int, submit: Submit, outbox: Outbox[_Response]) -> None:
        address = None
        try:
            hashes, offers = self._step_loop.scheduler.offers(submit.request)
            num_tokens = len(submit.request.prompt_token_ids) // 4
            block_size = self._step_loop.block_size
            address = await self._redirection.better_address(hashes, num_tokens, block_size, offers)
        except QuireError:
            pass  # what is wrong with it, `_submit` says
        if client not in self._sessions:
            return
        if address is None:
            self._submit(client, submit, outbox)
        else:
            metrics.redirects.inc()
            outbox.put(_Response(redirects=[_Response.Redirect(handle=submit.handle, address=address)]))

    def _submit(self, client: int, submit: Submit, outbox: Outbox[_Response]) -> None:
        """A request that is refused ends alone; the session goes on."""
        try:
            self._step_loop.submit(client, submit.handle, submit.request)
        except Exception as problem:
            if isinstance(problem, QuireError):
                error = problem
            else:
                # The boundary of one request: whatever is wrong with it stays its own.
                with telemetry.in_trace(submit.request.trace):
                    log.error("a request could not be taken", exc_info=problem)
                error = Internal("the request could not be taken: an internal error, which was logged")
            self._count_refusal(submit.request, error)
            end = scheduler_pb2.SequenceEnd(
                handle=submit.handle, finish_reason=types_pb2.FINISH_REASON_ERROR, error=error.to_proto()
            )
            outbox.put(_Response(batch=scheduler_pb2.TokenBatch(ends=[end])))

    def _count_refusal(self, request: scheduler_pb2.TokenRequest, error: QuireError) -> None:
        metrics.count_rejection(types_pb2.ErrorCode.Name(error.code))
        if isinstance(error, NotReady) or (request.resumed and isinstance(error, Overloaded)):
            # It says nothing of the request, which goes on at another scheduler if there is one, or was let in before.
            return
        self._settlement.add(LedgerRecord.of_refusal(request.ledger_id[:MAX_LEDGER_ID], request.tenant))

    async def Generate(  # noqa: N802
        self, request: scheduler_pb2.TokenRequest, context: Context
    ) -> AsyncIterator[scheduler_pb2.TokenUpdate]:
        """One request of an outside client; leaving the stream cancels it."""
        if not request.resumed:
            # Nobody's word is needed for what is new here.
            request.ledger_id = ""
        outbox: Outbox[scheduler_pb2.TokenBatch] = Outbox(merge, max_pending=_MAX_PENDING)
        client = self._step_loop.open_client(outbox.put)
        try:
            try:
                self._step_loop.submit(client, 0, request)
            except QuireError as error:
                self._count_refusal(request, error)
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
        self._shutdown.drain(request.timeout_s)
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
