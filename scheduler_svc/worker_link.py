"""The link to one worker: finds it, takes its lease, carries commands and results, comes back after a loss."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

import grpc
import structlog

from quire.rpc.cancellation import raise_if_cancelled
from quire.rpc.channel import open_channel
from quire.v1 import types_pb2, worker_pb2, worker_pb2_grpc
from scheduler_svc.adoption import AdoptedBlock
from scheduler_svc.core.step_tokens import ProtocolError
from scheduler_svc.patience import Patience

log = structlog.get_logger()

LEASE_KEY = "quire-lease-epoch"
_CALL_TIMEOUT_S = 5.0
_FIRST_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 1.0
_WATCH_INTERVAL_S = 1.0

RunCall = grpc.aio.StreamStreamCall[worker_pb2.StepCommand, worker_pb2.StepResult]
Adopt = Callable[
    ["worker_pb2_grpc.WorkerAsyncStub", worker_pb2.WorkerDescription], Awaitable[list[AdoptedBlock]]
]


class WorkerLink:
    """`on_open`, `on_result` and `on_close` run on the event loop, in that order for each life of the stream.

    Each life takes an epoch from `take_epoch` (0: the lease is another scheduler's) and asks `adopt` what the
    worker's blocks still hold; `on_open` gets the worker's description, the epoch, and that. It and `on_result` may
    raise ProtocolError, which ends this life of the stream. So does a worker that has commands and is silent beyond
    `patience`: whatever it does later is on a stream that nobody reads, under a lease that has passed.
    """

    def __init__(
        self,
        address: str,
        *,
        take_epoch: Callable[[], Awaitable[int]],
        adopt: Adopt,
        on_open: Callable[[worker_pb2.WorkerDescription, int, list[AdoptedBlock]], None],
        on_result: Callable[[worker_pb2.StepResult], None],
        on_close: Callable[[], None],
        on_progress: Callable[[], None],
        patience: Patience,
    ) -> None:
        self.address = address
        self.load_progress = 0.0
        """Share of the worker's weights that are loaded, as far as is known."""
        self._take_epoch = take_epoch
        self._adopt = adopt
        self._on_open = on_open
        self._on_result = on_result
        self._on_close = on_close
        self._on_progress = on_progress
        self._patience = patience
        self._hung = False
        self._last_reason = ""
        """Why the worker could not be reached, as it was logged last."""
        self._channel = open_channel(address)
        self.stub: worker_pb2_grpc.WorkerAsyncStub = worker_pb2_grpc.WorkerStub(self._channel)
        self._outbox: deque[worker_pb2.StepCommand] = deque()
        self._wake = asyncio.Event()

    def send(self, command: worker_pb2.StepCommand) -> None:
        """Queue a command; only between `on_open` and `on_close`."""
        self._patience.sent(time.monotonic())
        self._outbox.append(command)
        self._wake.set()

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        backoff_s = _FIRST_BACKOFF_S
        try:
            while True:
                try:
                    if await self._run_once():
                        backoff_s = _FIRST_BACKOFF_S
                except grpc.aio.AioRpcError as error:
                    raise_if_cancelled()
                    self._log_loss(error)
                    await self._watch_progress()
                except ProtocolError as error:
                    log.error("worker refused", worker=self.address, problem=str(error))
                raise_if_cancelled()
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
        finally:
            await self._channel.close()

    async def _run_once(self) -> bool:
        """One life of the stream; true if it brought results."""
        description = await self.stub.Describe(worker_pb2.DescribeRequest(), timeout=_CALL_TIMEOUT_S)
        lease_epoch = await self._take_epoch()
        if lease_epoch == 0:
            return False
        call: RunCall = self.stub.Run(metadata=((LEASE_KEY, str(lease_epoch)),))
        self.load_progress = 1.0
        try:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                # The worker sends it when the lease is ours. A refusal ends the call instead.
                await call.initial_metadata()
            if call.done():
                await call.read()  # raises what the call ended with
            # From here on nobody else gives the worker commands, so what it says of its blocks stays true.
            adopted = await self._adopt(self.stub, description)
            self._on_open(description, lease_epoch, adopted)
            log.info(
                "worker connected", worker=self.address, worker_id=description.worker_id, lease=lease_epoch
            )
            try:
                return await self._carry(call)
            finally:
                task = asyncio.current_task()
                if task is None or not task.cancelling():  # leaving ourselves is no news
                    log.warning("worker disconnected", worker=self.address, worker_id=description.worker_id)
                self._on_close()
        except TimeoutError:
            log.warning("worker does not open its stream", worker=self.address)
            return False
        finally:
            call.cancel()

    async def _carry(self, call: RunCall) -> bool:
        """Commands out, results in, until the stream ends; true if there were results."""
        self._outbox.clear()
        self._patience.begin()
        self._hung = False
        tasks = [
            asyncio.create_task(self._write(call), name=f"commands to {self.address}"),
            asyncio.create_task(self._watch(call), name=f"watch over {self.address}"),
        ]
        brought = False
        try:
            async for result in call:
                self._patience.answered(time.monotonic())
                brought = True
                self._on_result(result)
        except asyncio.CancelledError:
            # Raised here too when the watch cancels the call.
            if not self._hung:
                raise
        finally:
            for task in tasks:
                task.cancel()
        return brought

    async def _watch(self, call: RunCall) -> None:
        """Give the stream up when commands have been unanswered for too long."""
        patience = self._patience
        while not self._hung:
            await asyncio.sleep(min(patience.limit_s / 4, _WATCH_INTERVAL_S))
            now = time.monotonic()
            silent_s = patience.silent_s(now)
            if silent_s > patience.limit_s:
                log.error(
                    "worker hangs", worker=self.address, unanswered=patience.num_unanswered, seconds=silent_s
                )
                patience.give_up(now)
                self._hung = True
                call.cancel()

    def _log_loss(self, error: grpc.aio.AioRpcError) -> None:
        details = {"worker": self.address, "code": error.code().name, "details": error.details()}
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            # It may be starting, and a loss was logged as such; but what keeps it away is to be seen, once.
            reason = error.details() or ""
            (log.info if reason != self._last_reason else log.debug)("worker away", **details)
            self._last_reason = reason
        else:
            # A lease that another scheduler holds, or a command that the worker refused.
            log.error("worker ended the stream", **details)

    async def _write(self, call: RunCall) -> None:
        while True:
            while self._outbox:
                try:
                    await call.write(self._outbox.popleft())
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # the reader sees the same end and reports it
            self._wake.clear()
            await self._wake.wait()

    async def _watch_progress(self) -> None:
        try:
            status = await self.stub.GetStatus(types_pb2.GetStatusRequest(), timeout=_CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            progress = 0.0
        else:
            progress = status.load_progress
        if progress != self.load_progress:
            self.load_progress = progress
            self._on_progress()
