"""A worker without a model: its pipe, its lease, and what it says of its blocks."""

from collections import deque
from dataclasses import dataclass, field

import grpc

from benchmarks.instant_rows import InstantRows
from gpu_worker.block_tags import BlockTags
from quire.packing import pack_int32, pack_uint64, unpack_int32
from quire.v1 import types_pb2, worker_pb2
from tests.scheduler_svc.core.ownership import Ownership

VOCAB = 50
BLOCK_SIZE = 4
MAX_MODEL_LEN = 60


def description(
    worker_epoch: int, *, num_blocks: int, max_rows: int, worker_id: str = "w"
) -> worker_pb2.WorkerDescription:
    """A small worker."""
    model = types_pb2.ModelDescription(
        name="m", revision="r", vocab_size=VOCAB, max_model_len=MAX_MODEL_LEN, eos_token_ids=pack_int32([3])
    )
    return worker_pb2.WorkerDescription(
        worker_id=worker_id, worker_epoch=worker_epoch, model=model, block_size=BLOCK_SIZE, num_blocks=num_blocks,
        max_rows=max_rows, max_step_tokens=24, max_decode_steps=4, max_logprobs=5,
    )  # fmt: skip


@dataclass
class Stream:
    """One scheduler's pipe: commands wait to be executed, results to be delivered, both in order."""

    lease_epoch: int
    commands: deque[worker_pb2.StepCommand] = field(default_factory=deque)
    results: deque[worker_pb2.StepResult] = field(default_factory=deque)
    ownership: Ownership = field(default_factory=lambda: Ownership(BLOCK_SIZE))
    is_open: bool = True
    """If not, its scheduler has yet to hear of it."""

    def send(self, command: worker_pb2.StepCommand) -> None:
        """The scheduler's end; into the void if the stream has broken."""
        if self.is_open:
            self.ownership.sent(command)
            self.commands.append(worker_pb2.StepCommand.FromString(command.SerializeToString()))

    def close(self) -> None:
        """What is under way is lost."""
        self.is_open = False
        self.commands.clear()
        self.results.clear()


class FakeWorker:
    """One process of a worker: a stream at a time, the newest lease's."""

    def __init__(self, described: worker_pb2.WorkerDescription) -> None:
        self.rows = InstantRows(described)
        self.tags = BlockTags(described.num_blocks, described.block_size)
        self.stream: Stream | None = None
        self.is_draining = False
        # Some are so fast that more commands are kept in flight to them.
        self._step_s = 0.0006 if described.worker_id[-1] in "13579b" else 0.002

    @property
    def results(self) -> deque[worker_pb2.StepResult]:
        """Those on their way."""
        return self.stream.results if self.stream is not None else deque()

    def open(self, lease_epoch: int) -> Stream:
        """A scheduler opens its stream; another's ends. Rows are free, blocks keep their content."""
        self.close()
        self.rows.clear()
        self.stream = Stream(lease_epoch)
        return self.stream

    def close(self) -> None:
        """The stream breaks."""
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def work(self, times: int) -> None:
        """Execute what was sent, up to so many commands."""
        stream = self.stream
        while stream is not None and stream.commands and times > 0:
            command = stream.commands.popleft()
            assert command.lease_epoch == stream.lease_epoch, "a command under another lease"
            self.tags.note(command)
            result = self.rows.execute(command)
            result.draining = self.is_draining
            result.step_s = self._step_s * max(1, command.decode_steps)
            stream.results.append(result)
            times -= 1


class FakeStub:
    """What `adoption` asks a worker."""

    def __init__(self, worker: FakeWorker, *, answers: bool = True) -> None:
        self._worker = worker
        self._answers = answers

    async def DescribeBlocks(
        self, request: worker_pb2.DescribeBlocksRequest, *, timeout: float
    ) -> worker_pb2.DescribeBlocksResponse:
        """As the worker does. `timeout`: seconds."""
        if not self._answers:
            none = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, none, none, f"after {timeout} s")
        worker = self._worker
        blocks = unpack_int32(request.block_ids)
        return worker_pb2.DescribeBlocksResponse(
            worker_epoch=worker.rows.description.worker_epoch,
            lease_epochs=pack_uint64(worker.tags.lease_epochs),
            step_ids=pack_uint64(worker.tags.step_ids),
            checksums=pack_uint64(worker.rows.checksums(blocks)) if request.with_checksums else b"",
        )
