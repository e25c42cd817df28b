"""Strangers are refused and cost nothing; those who belong are served; both over real sockets."""

import asyncio
import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from quire.rpc.channel import open_channel
from quire.rpc.security import Security
from quire.rpc.server import RpcServer
from quire.rpc.session import SessionClient
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, tokenizer_pb2, types_pb2, worker_pb2
from tests.support.identities import TOKEN, TestAuthority

UNAVAILABLE, UNAUTHENTICATED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED


class Counting(scheduler_pb2_grpc.SchedulerServicer):
    """Counts the calls that reach it, of each kind that there is."""

    def __init__(self) -> None:
        self.num_calls = 0

    async def GetStatus(
        self, request: types_pb2.GetStatusRequest, context: object
    ) -> scheduler_pb2.SchedulerStatus:
        self.num_calls += 1
        return scheduler_pb2.SchedulerStatus()

    async def Generate(
        self, request: scheduler_pb2.TokenRequest, context: object
    ) -> AsyncIterator[scheduler_pb2.TokenUpdate]:
        self.num_calls += 1
        yield scheduler_pb2.TokenUpdate()

    async def Session(
        self, request_iterator: AsyncIterator[scheduler_pb2.SchedulerSessionRequest], context: object
    ) -> AsyncIterator[scheduler_pb2.SchedulerSessionResponse]:
        self.num_calls += 1
        yield scheduler_pb2.SchedulerSessionResponse(announcement=scheduler_pb2.SchedulerAnnouncement())
        async for request in request_iterator:
            end = scheduler_pb2.SequenceEnd(handle=request.submit.handle)
            yield scheduler_pb2.SchedulerSessionResponse(batch=scheduler_pb2.TokenBatch(ends=[end]))


class Serving:
    """A running server, and what was asked of it."""

    def __init__(self, rpc: RpcServer, servicer: Counting) -> None:
        self.address = rpc.address
        self._servicer = servicer

    @property
    def num_calls(self) -> int:
        return self._servicer.num_calls


@asynccontextmanager
async def serving(identity: Security, listen: str = "127.0.0.1:0") -> AsyncIterator[Serving]:
    rpc, servicer = RpcServer(listen, identity), Counting()
    scheduler_pb2_grpc.add_SchedulerServicer_to_server(servicer, rpc.server)
    await rpc.start(["quire.v1.Scheduler"])
    await rpc.set_serving(True)
    try:
        yield Serving(rpc, servicer)
    finally:
        await rpc.stop(0)


async def exhaust(call: grpc.aio.Call) -> None:
    async for _ in call:
        pass


async def outcomes(address: str, identity: Security) -> list[grpc.StatusCode]:
    """How each kind of call ends."""
    found = []
    async with open_channel(address, identity) as channel, asyncio.timeout(60):
        stub = scheduler_pb2_grpc.SchedulerStub(channel)
        session = stub.Session()
        for waiting in (
            stub.GetStatus(types_pb2.GetStatusRequest()),
            exhaust(stub.Generate(scheduler_pb2.TokenRequest())),
            session.read(),  # the peer speaks first
        ):
            try:
                await waiting
                found.append(grpc.StatusCode.OK)
            except grpc.aio.AioRpcError as error:
                found.append(error.code())
    return found


async def health(address: str, identity: Security) -> int:
    async with open_channel(address, identity) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        return int(answer.status)


@pytest.fixture(scope="module")
def authority() -> TestAuthority:
    return TestAuthority()


@pytest.fixture(params=["tcp", "unix"])
def listen(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/s"


async def test_with_certificates_of_one_authority_every_kind_of_call_is_served(
    authority: TestAuthority, listen: str
) -> None:
    async with serving(authority.identity(), listen) as server:
        for peer in ("scheduler-svc", ""):  # "": the name of the address's own host
            known = authority.identity("tokenizer-svc", peer=peer)
            assert await outcomes(server.address, known) == [grpc.StatusCode.OK] * 3
        assert await health(server.address, known) == health_pb2.HealthCheckResponse.SERVING


async def test_clients_without_a_certificate_of_the_authority_get_no_connection(
    authority: TestAuthority, listen: str
) -> None:
    other = TestAuthority()
    trusted = authority.authority.pem()
    foreign = other.identity("tokenizer-svc", peer="scheduler-svc")
    strangers = {
        "in clear": Security(),
        "of another authority": Security(
            foreign.certificate, foreign.private_key, trusted, peer="scheduler-svc"
        ),
        "expired": authority.identity(
            "tokenizer-svc", peer="scheduler-svc", valid_for=-dt.timedelta(hours=1)
        ),
    }
    async with serving(authority.identity(), listen) as server:
        for stranger in strangers.values():
            assert await outcomes(server.address, stranger) == [UNAVAILABLE] * 3
        assert await nameless(server.address, trusted) is UNAVAILABLE
        assert server.num_calls == 0
        known = authority.identity("tokenizer-svc", peer="scheduler-svc")
        assert await outcomes(server.address, known) == [grpc.StatusCode.OK] * 3


async def nameless(address: str, authorities: bytes) -> grpc.StatusCode:
    """How a call ends of a client that trusts the authority but shows no certificate."""
    options = [("grpc.ssl_target_name_override", "scheduler-svc")]
    credentials = grpc.ssl_channel_credentials(authorities)
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        try:
            await scheduler_pb2_grpc.SchedulerStub(channel).GetStatus(types_pb2.GetStatusRequest())
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("wrong", ["name", "authority", "age"])
async def test_a_client_tells_nothing_to_a_server_that_is_not_who_it_should_be(
    authority: TestAuthority, wrong: str
) -> None:
    impostor = {
        "name": lambda: authority.identity("gpu-worker"),
        "authority": lambda: TestAuthority().identity(),
        "age": lambda: authority.identity(valid_for=-dt.timedelta(hours=1)),
    }[wrong]()
    async with serving(impostor) as server:
        client = authority.identity("tokenizer-svc", peer="scheduler-svc")
        assert await outcomes(server.address, client) == [UNAVAILABLE] * 3
        assert server.num_calls == 0


@pytest.mark.parametrize("encrypted", [False, True])
async def test_calls_without_the_token_are_refused_before_they_reach_a_service(
    authority: TestAuthority, encrypted: bool
) -> None:
    def client(token: str) -> Security:
        if not encrypted:
            return Security(token=token)
        return authority.identity("tokenizer-svc", peer="scheduler-svc", token=token)

    identity = authority.identity(token=TOKEN) if encrypted else Security(token=TOKEN)
    async with serving(identity) as server:
        for token in ("", "another-token-of-the-same-length-or-so", TOKEN[:-1], TOKEN + "x"):
            assert await outcomes(server.address, client(token)) == [UNAUTHENTICATED] * 3
        assert server.num_calls == 0
        assert await outcomes(server.address, client(TOKEN)) == [grpc.StatusCode.OK] * 3
        assert server.num_calls == 3


async def test_without_the_token_no_method_of_any_service_is_open(listen: str) -> None:
    files = (scheduler_pb2, tokenizer_pb2, worker_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    methods = [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]
    assert len(methods) >= 15
    async with (
        serving(Security(token=TOKEN), listen) as server,
        open_channel(server.address, Security()) as stranger,
    ):
        for method in (*methods, "/quire.v1.Scheduler/NoSuchMethod"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await exhaust(stranger.unary_stream(method)(b""))
            assert caught.value.code() is UNAUTHENTICATED


async def test_without_the_token_health_answers_and_reflection_does_not() -> None:
    async with serving(Security(token=TOKEN)) as server:
        assert await health(server.address, Security()) == health_pb2.HealthCheckResponse.SERVING
        async with open_channel(server.address, Security()) as channel:
            ask = reflection_pb2.ServerReflectionRequest(list_services="")
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await exhaust(stub.ServerReflectionInfo(iter([ask])))
            assert caught.value.code() is UNAUTHENTICATED


async def test_a_session_carries_the_token_and_every_message_of_it(authority: TestAuthority) -> None:
    arrived: asyncio.Queue[int] = asyncio.Queue()

    def note(message: scheduler_pb2.SchedulerSessionResponse) -> None:
        for handle in [end.handle for end in message.batch.ends] or [0]:
            arrived.put_nowait(handle)

    client = authority.identity("tokenizer-svc", peer="scheduler-svc", token=TOKEN)
    async with (
        serving(authority.identity(token=TOKEN)) as server,
        open_channel(server.address, client) as channel,
    ):
        stub = scheduler_pb2_grpc.SchedulerStub(channel)
        session: SessionClient[
            scheduler_pb2.SchedulerSessionRequest, scheduler_pb2.SchedulerSessionResponse
        ] = SessionClient("scheduler", stub.Session, on_message=note, on_disconnect=lambda: None)
        running = asyncio.create_task(session.run())
        assert await arrived.get() == 0
        for handle in range(1, 50):
            submit = scheduler_pb2.SchedulerSessionRequest.Submit(handle=handle)
            session.send(scheduler_pb2.SchedulerSessionRequest(submit=submit))
        assert [await arrived.get() for _ in range(1, 50)] == list(range(1, 50))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_session_says_once_why_the_peer_cannot_be_trusted(authority: TestAuthority) -> None:
    client = authority.identity("tokenizer-svc", peer="scheduler-svc")
    attempts: asyncio.Queue[None] = asyncio.Queue()
    async with (
        serving(authority.identity("gpu-worker")) as server,
        open_channel(server.address, client) as channel,
    ):
        stub = scheduler_pb2_grpc.SchedulerStub(channel)

        def connect() -> grpc.aio.StreamStreamCall:
            attempts.put_nowait(None)
            return stub.Session()

        session: SessionClient[
            scheduler_pb2.SchedulerSessionRequest, scheduler_pb2.SchedulerSessionResponse
        ] = SessionClient("scheduler", connect, on_message=print, on_disconnect=lambda: None)
        with capture_logs() as lines:
            running = asyncio.create_task(session.run())
            for _ in range(4):
                await attempts.get()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    told = [line for line in lines if line["log_level"] == "info"]
    assert len(told) == 1
    assert "Hostname Verification" in told[0]["details"]
    assert len(lines) >= 3


def test_secrets_are_not_in_the_representation(authority: TestAuthority) -> None:
    shown = repr(authority.identity(token=TOKEN))
    assert TOKEN not in shown
    assert "PRIVATE KEY" not in shown
