"""A scheduler service that answers as a test tells it to: the real protocol over a real socket."""

import asyncio
from collections.abc import AsyncIterator, Callable

from quire.packing import pack_int32, pack_uint32
from quire.rpc.server import RpcServer
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, types_pb2
from tests.support.checkpoints import VOCAB_SIZE

Response = scheduler_pb2.SchedulerSessionResponse
Submit = scheduler_pb2.SchedulerSessionRequest.Submit

# What a submission is answered with, in order.
Script = Callable[[Submit], list[Response]]


def tokens(handle: int, *token_ids: int, is_last: bool = False) -> Response:
    """Tokens of the one sequence of a request, and its end."""
    batch = scheduler_pb2.TokenBatch(
        handles=pack_uint32([handle]),
        num_tokens=pack_uint32([len(token_ids)]),
        token_ids=pack_int32(token_ids),
    )
    if is_last:
        batch.ends.add(handle=handle, finish_reason=types_pb2.FINISH_REASON_LENGTH)
    return Response(batch=batch)


def unavailable(handle: int) -> Response:
    """A refusal that another scheduler may not share."""
    error = types_pb2.Error(code=types_pb2.ERROR_CODE_UNAVAILABLE, message="leaving; try again")
    batch = scheduler_pb2.TokenBatch()
    batch.ends.add(handle=handle, finish_reason=types_pb2.FINISH_REASON_ERROR, error=error)
    return Response(batch=batch)


def refused(handle: int) -> Response:
    """A refusal because of too much work."""
    error = types_pb2.Error(code=types_pb2.ERROR_CODE_RESOURCE_EXHAUSTED, message="full", retry_after_s=1.0)
    batch = scheduler_pb2.TokenBatch()
    batch.ends.add(handle=handle, finish_reason=types_pb2.FINISH_REASON_ERROR, error=error)
    return Response(batch=batch)


def announcement(*, has_worker: bool) -> Response:
    """Whether it has a worker, from now on."""
    state = types_pb2.SERVICE_STATE_READY if has_worker else types_pb2.SERVICE_STATE_STARTING
    model = types_pb2.ModelDescription(name="m", vocab_size=VOCAB_SIZE, max_model_len=512)
    return Response(
        announcement=scheduler_pb2.SchedulerAnnouncement(state=state, model=model, scheduler_epoch=1)
    )


def redirect(handle: int, address: str) -> Response:
    """Another one serves it better."""
    return Response(redirects=[Response.Redirect(handle=handle, address=address)])


class FakeScheduler(scheduler_pb2_grpc.SchedulerServicer):
    """READY from the start; remembers what was submitted."""

    def __init__(self, listen: str, script: Script) -> None:
        self.rpc = RpcServer(listen)
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(self, self.rpc.server)
        self.script = script
        self.submitted: list[scheduler_pb2.TokenRequest] = []
        self.received: list[scheduler_pb2.SchedulerSessionRequest] = []

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.rpc.address

    async def start(self) -> None:
        """Listen."""
        await self.rpc.start(["quire.v1.Scheduler"])

    async def stop(self) -> None:
        """Cut every session off."""
        await self.rpc.stop(0)

    async def Session(
        self, request_iterator: AsyncIterator[scheduler_pb2.SchedulerSessionRequest], context: object
    ) -> AsyncIterator[Response]:
        """One tokenizer process."""
        yield announcement(has_worker=True)
        async for request in request_iterator:
            self.received.append(request)
            if request.HasField("submit"):
                self.submitted.append(request.submit.request)
                for response in self.script(request.submit):
                    yield response
        await asyncio.Event().wait()
