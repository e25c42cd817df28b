"""The threads of the device: one hands commands to it, one waits for what they make; the event loop does neither.

The first does not wait for results, so that on a GPU the next command is queued while one runs.
"""

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

import grpc
import structlog

from gpu_worker import metrics
from gpu_worker.launched_step import LaunchedStep
from gpu_worker.model_runner import ModelRunner
from gpu_worker.row_spans import RowSpans
from quire import telemetry
from quire.errors import Internal, QuireError
from quire.v1 import worker_pb2

log = structlog.get_logger()

Result = TypeVar("Result")

# Far more than any pipeline is deep: a peer that sends more without reading waits.
_MAX_IN_FLIGHT = 64


class Superseded(QuireError):
    """Another scheduler has the lease."""

    status = grpc.StatusCode.ABORTED


@dataclass(slots=True, eq=False)
class CommandStream:
    """One `Run` stream's way through the step loop. All fields belong to the event loop's thread."""

    results: "asyncio.Queue[worker_pb2.StepResult | QuireError | None]" = field(default_factory=asyncio.Queue)
    """In the order of the commands; an error or None is the last."""
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_MAX_IN_FLIGHT))
    is_over: bool = False
    is_complete: bool = False
    """No further command will come."""
    in_flight: int = 0
    cleared: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once what ran before has retired and every row is removed: never on a device that hangs."""


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What the step loop has done, as of the last command that retired."""

    rows_used: int = 0
    last_step_id: int = 0
    steps_executed: int = 0
    tokens_computed: int = 0


@dataclass(frozen=True, slots=True)
class Retiring:
    """What the completion thread is told, in the order of the commands: one that runs or failed, or a clearing."""

    stream: CommandStream
    rows_used: int
    command: worker_pb2.StepCommand | None = None
    """None: all rows were removed."""
    launched_ns: int = 0
    outcome: LaunchedStep | QuireError | None = None


class StepLoop:
    """Runs commands of one stream at a time, in order."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._spans = RowSpans()
        self._inbox: queue.SimpleQueue[
            tuple[CommandStream, worker_pb2.StepCommand | None] | Callable[[], None] | None
        ] = queue.SimpleQueue()
        self._retiring: queue.SimpleQueue[Retiring | None] = queue.SimpleQueue()
        self._tokens_computed = 0
        self._loop = asyncio.get_running_loop()
        self._launcher = threading.Thread(target=self._launch_all, name="step loop", daemon=True)
        self._completer = threading.Thread(target=self._retire_all, name="completion", daemon=True)
        self.stream: CommandStream | None = None
        self.counts = StepCounts()
        self.idle = asyncio.Event()
        """Set while no row is in use."""
        self.idle.set()
        self._launcher.start()
        self._completer.start()

    def begin(self) -> CommandStream:
        """Take the rows: the stream before ends with an error, every row is removed."""
        if self.stream is not None:
            self.stream.results.put_nowait(Superseded("another scheduler has taken the lease"))
            self.end(self.stream)
        self.stream = CommandStream()
        self._inbox.put((self.stream, None))
        return self.stream

    def end(self, stream: CommandStream) -> None:
        """The stream is gone; what it has in flight is dropped, and its rows with it."""
        stream.is_over = True
        if self.stream is stream:
            self.stream = None
            self._inbox.put((stream, None))

    async def submit(self, stream: CommandStream, command: worker_pb2.StepCommand) -> None:
        """Queue a command; waits while too many are in flight."""
        await stream.room.acquire()
        stream.in_flight += 1
        self._inbox.put((stream, command))

    def complete(self, stream: CommandStream) -> None:
        """No further command will come: the stream ends after the results of those in flight."""
        stream.is_complete = True
        if stream.in_flight == 0:
            stream.results.put_nowait(None)

    @property
    def num_blocks_used(self) -> int:
        """Distinct blocks that rows in use name."""
        return self._runner.rows.num_blocks_used

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run `function` in the thread that owns the device, between two commands."""
        future: asyncio.Future[Result] = self._loop.create_future()

        def settle(value: Result | None, error: BaseException | None) -> None:
            if future.cancelled():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(cast("Result", value))

        def work() -> None:
            try:
                self._loop.call_soon_threadsafe(settle, function(), None)
            except Exception as error:  # the caller's, not this thread's
                self._loop.call_soon_threadsafe(settle, None, error)

        self._inbox.put(work)
        return await future

    @staticmethod
    async def results(stream: CommandStream) -> AsyncIterator[worker_pb2.StepResult]:
        """Results in the order of the commands. Raises the QuireError that a bad command ended the stream with."""
        while True:
            result = await stream.results.get()
            if result is None:
                return
            if isinstance(result, QuireError):
                raise result
            stream.room.release()
            yield result

    def close(self) -> None:
        """Let the threads end."""
        self._inbox.put(None)
        self._launcher.join()
        self._completer.join()

    # -- in the thread that launches

    def _launch_all(self) -> None:
        while (item := self._inbox.get()) is not None:
            if not isinstance(item, tuple):
                item()
                continue
            stream, command = item
            if command is None:
                self._runner.clear()
                self._retiring.put(Retiring(stream, 0))
            elif not stream.is_over:
                launched_ns, outcome = time.time_ns(), self._launch(command)
                if isinstance(outcome, QuireError):
                    stream.is_over = True
                rows_used = self._runner.rows.num_used
                self._retiring.put(Retiring(stream, rows_used, command, launched_ns, outcome))
        self._retiring.put(None)

    def _launch(self, command: worker_pb2.StepCommand) -> LaunchedStep | QuireError:
        try:
            return self._runner.launch(command)
        except QuireError as error:
            metrics.protocol_errors.inc()
            return error
        except Exception as error:
            return _failed(command, error)

    # -- in the thread that waits

    def _retire_all(self) -> None:
        while (item := self._retiring.get()) is not None:
            if item.command is None:
                self._spans.clear()
                self._post(item, None)
            else:
                self._post(item, self._retire(item, item.command))

    def _retire(self, item: Retiring, command: worker_pb2.StepCommand) -> worker_pb2.StepResult | QuireError:
        if not isinstance(item.outcome, LaunchedStep):
            return item.outcome or Internal("nothing came of the command")
        try:
            result = item.outcome.wait()
        except Exception as error:
            item.stream.is_over = True
            return _failed(command, error)
        self._spans.received(command, item.launched_ns)
        for failure in result.errors:
            with telemetry.in_trace(self._spans.trace_of(failure.row)):
                log.error("a row failed", row=failure.row, problem=failure.error.message)
        self._spans.retired(result)
        self._tokens_computed += result.tokens_computed
        metrics.step_seconds.observe(result.step_s)
        metrics.commands.inc()
        metrics.tokens_computed.inc(result.tokens_computed)
        metrics.row_errors.inc(len(result.errors))
        return result

    def _post(self, item: Retiring, answer: worker_pb2.StepResult | QuireError | None) -> None:
        step_id = item.command.step_id if item.command is not None else 0
        counts = StepCounts(item.rows_used, step_id, self._runner.steps_executed, self._tokens_computed)
        metrics.rows_used.set(counts.rows_used)
        self._loop.call_soon_threadsafe(self._deliver, item.stream, answer, counts)

    def _deliver(
        self, stream: CommandStream, answer: worker_pb2.StepResult | QuireError | None, counts: StepCounts
    ) -> None:
        self.counts = counts
        if counts.rows_used:
            self.idle.clear()
        else:
            self.idle.set()
        if answer is None:
            stream.cleared.set()
            return
        stream.in_flight -= 1
        stream.results.put_nowait(answer)
        if stream.is_complete and stream.in_flight == 0:
            stream.results.put_nowait(None)


def _failed(command: worker_pb2.StepCommand, error: Exception) -> QuireError:
    """A fault of ours, or of the device: this stream's rows are lost, the process serves the next one."""
    log.error("a step failed", step_id=command.step_id, exc_info=error)
    return Internal(f"step {command.step_id} failed: an internal error, which was logged")
