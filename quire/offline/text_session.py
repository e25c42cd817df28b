"""The session of the offline API with its tokenizer service: whole requests in, whole outputs back."""

import asyncio
from collections.abc import Callable, Sequence

from quire.errors import Internal, QuireError, from_proto
from quire.rpc.channel import open_channel
from quire.rpc.session import SessionClient
from quire.v1 import tokenizer_pb2, tokenizer_pb2_grpc, types_pb2

_Request = tokenizer_pb2.TokenizerSessionRequest
_Response = tokenizer_pb2.TokenizerSessionResponse

Deltas = list[tokenizer_pb2.TextDelta]
# Enough for any worker's rows; the rest of a long list waits here, where it costs the services nothing.
_MAX_IN_FLIGHT = 4096


class TextSession:
    """Submits requests that are not streamed, and collects one delta per sequence."""

    def __init__(self, address: str) -> None:
        self._channel = open_channel(address)
        self._stub: tokenizer_pb2_grpc.TokenizerAsyncStub = tokenizer_pb2_grpc.TokenizerStub(self._channel)
        self._session: SessionClient[_Request, _Response] = SessionClient(
            "the tokenizer service",
            lambda: self._stub.Session(),
            on_message=self._receive,
            on_disconnect=self._disconnected,
        )
        self._ready = asyncio.Event()
        self._live: dict[int, tuple[asyncio.Future[Deltas], Deltas, int]] = {}
        self._last_handle = 0

    async def run(self) -> None:
        """Keep the session up until cancelled."""
        try:
            await self._session.run()
        finally:
            await self._channel.close()

    async def ready(self) -> None:
        """Return when a request would be served."""
        await self._ready.wait()

    async def generate(
        self, requests: Sequence[tokenizer_pb2.TextRequest], on_done: Callable[[Deltas], None]
    ) -> list[Deltas]:
        """Deltas of each request, in the order of its sequences; `on_done` gets each request's as it ends.

        The first error, its request's number before it, cancels the others and is raised.
        """
        room = asyncio.Semaphore(_MAX_IN_FLIGHT)

        async def one(number: int, request: tokenizer_pb2.TextRequest) -> Deltas:
            async with room:
                try:
                    deltas = await self._generate(request)
                except QuireError as error:
                    where = f"prompt {number}: " if len(requests) > 1 else ""
                    raise type(error)(f"{where}{error.message}", param=error.param) from None
            on_done(deltas)
            return deltas

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number, request)) for number, request in enumerate(requests)]
        except* QuireError as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _generate(self, request: tokenizer_pb2.TextRequest) -> Deltas:
        self._last_handle = handle = (self._last_handle + 1) % 2**32
        ended: asyncio.Future[Deltas] = asyncio.get_running_loop().create_future()
        self._session.send(_Request(submit=_Request.Submit(handle=handle, request=request)))
        self._live[handle] = (ended, [], request.n or 1)
        try:
            return await ended
        finally:
            if self._live.pop(handle, None) is not None and self._session.connected:
                self._session.send(_Request(cancel=_Request.Cancel(handle=handle)))

    def _receive(self, message: _Response) -> None:
        if message.HasField("announcement") and message.announcement.state == types_pb2.SERVICE_STATE_READY:
            self._ready.set()
        for delta in message.deltas:
            if delta.handle not in self._live:
                continue  # cancelled meanwhile
            ended, deltas, num_sequences = self._live[delta.handle]
            if ended.done():
                continue  # given up by its task, which has not run since
            if delta.HasField("error"):
                del self._live[delta.handle]
                ended.set_exception(from_proto(delta.error))
                continue
            deltas.append(delta)
            if len(deltas) == num_sequences:
                del self._live[delta.handle]
                ended.set_result(sorted(deltas, key=lambda delta: delta.sequence))

    def _disconnected(self) -> None:
        live, self._live = self._live, {}
        for ended, _, _ in live.values():
            if not ended.done():
                ended.set_exception(Internal("the tokenizer service was lost; its requests are gone"))
