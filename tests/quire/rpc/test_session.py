"""A session survives the loss of its peer, and a peer that does not read loses its session alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path

import grpc
import pytest

from quire.errors import NotReady, Overloaded
from quire.rpc.channel import open_channel
from quire.rpc.server import RpcServer
from quire.rpc.session import Outbox, SessionClient
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, types_pb2


class Echo(scheduler_pb2_grpc.SchedulerServicer):
    """Announces itself, then answers each message with a batch that names the handles of its submits."""

    async def Session(
        self, request_iterator: AsyncIterator[scheduler_pb2.SchedulerSessionRequest], context: object
    ) -> AsyncIterator[scheduler_pb2.SchedulerSessionResponse]:
        yield scheduler_pb2.SchedulerSessionResponse(announcement=scheduler_pb2.SchedulerAnnouncement())
        async for request in request_iterator:
            if request.submit.handle == 13:
                raise RuntimeError("a bug of ours")
            ends = [scheduler_pb2.SequenceEnd(handle=one.submit.handle) for one in (request, *request.more)]
            yield scheduler_pb2.SchedulerSessionResponse(batch=scheduler_pb2.TokenBatch(ends=ends))


class Peer:
    """A client of `Echo` that notes what happens to it."""

    def __init__(self, address: str) -> None:
        self.events: asyncio.Queue[int | str] = asyncio.Queue()
        self.sizes: list[int] = []
        """Submits of each message that was answered."""
        stub = scheduler_pb2_grpc.SchedulerStub(open_channel(address))
        self.session: SessionClient[
            scheduler_pb2.SchedulerSessionRequest, scheduler_pb2.SchedulerSessionResponse
        ] = SessionClient(
            "echo", stub.Session, on_message=self._note, on_disconnect=lambda: self.events.put_nowait("lost")
        )

    def _note(self, message: scheduler_pb2.SchedulerSessionResponse) -> None:
        if message.HasField("announcement"):
            self.events.put_nowait("open")
        else:
            self.sizes.append(len(message.batch.ends))
        for end in message.batch.ends:
            self.events.put_nowait(end.handle)

    def submit(self, handle: int, num_bytes: int = 0) -> None:
        request = scheduler_pb2.TokenRequest(prompt_token_ids=bytes(num_bytes))
        submit = scheduler_pb2.SchedulerSessionRequest.Submit(handle=handle, request=request)
        self.session.send(scheduler_pb2.SchedulerSessionRequest(submit=submit))


async def serve(address: str) -> RpcServer:
    server = RpcServer(address)
    scheduler_pb2_grpc.add_SchedulerServicer_to_server(Echo(), server.server)
    await server.start(["quire.v1.Scheduler"])
    return server


@asynccontextmanager
async def connected(tmp_path: Path) -> AsyncIterator[tuple[Peer, list[RpcServer]]]:
    """A peer whose session is open, and the servers that it has had; the last one is stopped at the end."""
    address = f"unix:{tmp_path}/echo"
    servers = [await serve(address)]
    peer = Peer(address)
    running = asyncio.create_task(peer.session.run())
    try:
        assert await peer.events.get() == "open"
        yield peer, servers
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await servers[-1].stop(0)


async def test_messages_flow_both_ways_and_again_after_the_peer_restarts(tmp_path) -> None:
    async with connected(tmp_path) as (peer, servers):
        peer.submit(1)
        peer.submit(2)
        assert [await peer.events.get(), await peer.events.get()] == [1, 2]
        await servers[-1].stop(0)
        assert await peer.events.get() == "lost"
        with pytest.raises(NotReady):
            peer.submit(3)
        servers.append(await serve(f"unix:{tmp_path}/echo"))
        assert await peer.events.get() == "open"
        peer.submit(4)
        assert await peer.events.get() == 4


@pytest.mark.parametrize(
    ("merges", "num_bytes", "sizes"),
    [
        (False, 0, [1] * 20),
        (True, 0, [1, 19]),
        (True, 20_000, [1, 3, 3, 3, 3, 3, 3, 1]),
        (True, 100_000, [1] * 20),
    ],
)
async def test_of_a_burst_the_first_goes_alone_and_the_others_together_where_the_peer_takes_it(
    tmp_path, merges: bool, num_bytes: int, sizes: list[int]
) -> None:
    async with connected(tmp_path) as (peer, _):
        peer.session.merges = merges
        for handle in range(20, 40):
            peer.submit(handle, num_bytes)
        assert [await peer.events.get() for _ in range(20)] == list(range(20, 40))
        assert peer.sizes == sizes


async def test_an_error_in_the_servicer_ends_the_session_and_the_next_one_works(tmp_path) -> None:
    async with connected(tmp_path) as (peer, _):
        peer.submit(13)
        assert [await peer.events.get(), await peer.events.get()] == ["lost", "open"]
        peer.submit(14)
        assert await peer.events.get() == 14


async def test_unary_errors_have_their_status_and_health_answers(tmp_path) -> None:
    server = await serve(f"unix:{tmp_path}/echo")
    async with open_channel(server.address) as channel:
        stub = scheduler_pb2_grpc.SchedulerStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetStatus(types_pb2.GetStatusRequest())
        assert caught.value.code() is grpc.StatusCode.INTERNAL  # Echo does not implement it
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        health = health_pb2_grpc.HealthStub(channel)
        service = health_pb2.HealthCheckRequest(service="quire.v1.Scheduler")
        process = health_pb2.HealthCheckRequest()

        async def said() -> list[bool]:
            answers = [await health.Check(request) for request in (service, process)]
            return [answer.status == health_pb2.HealthCheckResponse.SERVING for answer in answers]

        assert await said() == [False, False]
        await server.set_serving(False, able=True)
        assert await said() == [False, True]
        await server.set_serving(True)
        assert await said() == [True, True]
    await server.stop(0)


async def test_a_taken_address_is_one_clear_error() -> None:
    first = await serve("127.0.0.1:0")
    with pytest.raises(Exception, match="cannot listen on"):
        await serve(first.address)
    await first.stop(0)


async def test_an_outbox_merges_what_piled_up_and_keeps_order() -> None:
    outbox: Outbox[list[int]] = Outbox(lambda lists: [*chain(*lists)], max_pending=10)
    for number in range(5):
        outbox.put([number])
    outbox.close()
    assert [message async for message in outbox] == [[0, 1, 2, 3, 4]]


async def test_an_outbox_nobody_reads_overflows_into_an_error() -> None:
    outbox: Outbox[int] = Outbox(sum, max_pending=3)
    for number in range(5):
        outbox.put(number)
    with pytest.raises(Overloaded):
        async for _ in outbox:
            pass


@pytest.mark.parametrize("turns", range(8))
async def test_a_session_that_is_being_opened_ends_when_it_is_told_to(turns: int, tmp_path) -> None:
    running = asyncio.create_task(Peer(f"unix:{tmp_path}/nobody").session.run())
    for _ in range(turns):
        await asyncio.sleep(0)
    # Once: a second time would be heard.
    running.cancel()
    async with asyncio.timeout(60):
        await asyncio.wait([running])
    assert running.cancelled()
