"""Several schedulers behind one tokenizer service: redirects, losses, refusals, and schedulers that register."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from quire import redis_client
from quire.packing import pack_int32, pack_uint32, unpack_int32
from quire.registry import Registration
from quire.rpc.channel import open_channel
from quire.service import Shutdown
from quire.v1 import scheduler_pb2, tokenizer_pb2, tokenizer_pb2_grpc, types_pb2
from tests.support.checkpoints import VOCAB_SIZE, checkpoint
from tests.support.fake_scheduler import (
    FakeScheduler,
    announcement,
    redirect,
    refused,
    tokens,
    unavailable,
)
from tests.support.traced_logs import TRACE_ID, TRACEPARENT, traced_logs
from tests.support.until import until
from tests.tokenizer_svc.test_server import made
from tokenizer_svc import schedulers
from tokenizer_svc import server as tokenizer_server
from tokenizer_svc.server import TokenizerServicer
from tokenizer_svc.settings import TokenizerSettings


@asynccontextmanager
async def front(
    tmp_path: Path, *schedulers: FakeScheduler, **fields: Any
) -> AsyncIterator[TokenizerServicer]:
    settings = made(
        TokenizerSettings,
        listen=f"unix:{tmp_path}/front",
        model=str(checkpoint()),
        **({"schedulers": tuple(s.address for s in schedulers)} | fields),
    )
    service = TokenizerServicer(settings, Shutdown())
    await service.start()
    try:
        yield service
    finally:
        await service.stop()
        for scheduler in schedulers:
            await scheduler.stop()


async def one(tmp_path: Path, name: str = "a") -> FakeScheduler:
    """One that answers with two tokens and the end."""
    scheduler = FakeScheduler(f"unix:{tmp_path}/{name}", lambda s: [tokens(s.handle, 5, 6, is_last=True)])
    await scheduler.start()
    return scheduler


async def two(tmp_path: Path) -> tuple[FakeScheduler, FakeScheduler]:
    """Of equals the tokenizer asks the first by name."""
    return await one(tmp_path, "a"), await one(tmp_path, "b")


async def generate(service: TokenizerServicer, **fields: Any) -> list[int]:
    """Token ids of one request's answer."""
    async with open_channel(service.rpc.address) as channel:
        stub = tokenizer_pb2_grpc.TokenizerStub(channel)
        sampling = types_pb2.SamplingParams(temperature=0, max_tokens=8)
        request = tokenizer_pb2.TextRequest(
            text="Hello", sampling=sampling, stream=True, return_token_ids=True, **fields
        )
        found: list[int] = []
        async for delta in stub.Generate(request):
            found += unpack_int32(delta.token_ids).tolist()
        return found


async def ready(service: TokenizerServicer, num_schedulers: int) -> None:
    """Wait until so many schedulers would take a request."""
    async with open_channel(service.rpc.address) as channel, asyncio.timeout(60):
        stub = tokenizer_pb2_grpc.TokenizerStub(channel)
        while True:
            status = await stub.GetStatus(types_pb2.GetStatusRequest())
            if (status.state, status.schedulers_ready) == (types_pb2.SERVICE_STATE_READY, num_schedulers):
                return
            await asyncio.sleep(0.005)


async def test_what_the_scheduler_decides_by_reaches_it_and_stays_with_a_request_that_moves(
    tmp_path: Path,
) -> None:
    a, b = await two(tmp_path)
    a.script = lambda s: [redirect(s.handle, b.address)]
    policy = types_pb2.TenantPolicy(weight=2.0, kv_floor=0.25, kv_ceiling=0.5)
    decides = {
        "request_id": "id",
        "tenant": "team",
        "tenant_policy": policy,
        "priority": -7,
        "cache_salt": "salt",
        "public_prefix_tokens": 16,
    }
    async with front(tmp_path, a, b) as service:
        await ready(service, 2)
        await generate(service, **decides)
        a.script = lambda s: [tokens(s.handle, 5, 6, is_last=True)]
        await generate(service)
    for request in (a.submitted[0], b.submitted[0]):
        assert {name: getattr(request, name) for name in decides} == decides
    assert a.submitted[0].ledger_id == b.submitted[0].ledger_id != a.submitted[1].ledger_id
    assert not a.submitted[1].HasField("tenant_policy")
    assert not a.submitted[1].HasField("timeout_s")


async def test_a_redirect_is_followed_and_marked_as_such(tmp_path: Path) -> None:
    a, b = await two(tmp_path)
    a.script = lambda s: [redirect(s.handle, b.address)]
    async with front(tmp_path, a, b) as service:
        await ready(service, 2)
        assert await generate(service) == [5, 6]
    assert not a.submitted[0].redirected
    assert [request.redirected for request in b.submitted] == [True]


async def test_a_deadline_stays_where_it_was(tmp_path: Path) -> None:
    a, b = await two(tmp_path)
    a.script = lambda s: [redirect(s.handle, b.address)]
    async with front(tmp_path, a, b) as service:
        await ready(service, 2)
        assert await generate(service, timeout_s=60.0) == [5, 6]
    assert a.submitted[0].timeout_s == 60.0
    assert 0 < b.submitted[0].timeout_s < 60.0


async def test_a_redirect_to_nowhere_comes_to_an_end_all_the_same(tmp_path: Path) -> None:
    a, b = await two(tmp_path)
    a.script = lambda s: [redirect(s.handle, f"unix:{tmp_path}/nowhere")]
    async with front(tmp_path, a, b) as service:
        await ready(service, 2)
        b.script = lambda s: [tokens(s.handle, 7, is_last=True)]
        a_first = a.script

        def once(submit: Any) -> Any:
            a.script = lambda s: [tokens(s.handle, 7, is_last=True)]
            return a_first(submit)

        a.script = once
        assert await generate(service) == [7]


async def test_a_request_goes_on_at_the_other_one_with_its_tokens(tmp_path: Path) -> None:
    a, b = await two(tmp_path)
    a.script = lambda s: [tokens(s.handle, 3, 4)]
    async with front(tmp_path, a, b) as service:
        await ready(service, 2)
        answer = asyncio.create_task(generate(service))
        await until(lambda: bool(a.submitted))
        await a.stop()
        assert (await answer)[-2:] == [5, 6]
    resumed = [unpack_int32(part.token_ids).tolist() for part in b.submitted[0].resumed]
    assert resumed in ([[3, 4]], [])  # what had arrived before the end of the session


async def test_who_is_leaving_is_not_asked_again(tmp_path: Path) -> None:
    a, b = await two(tmp_path)
    a.script = lambda s: [unavailable(s.handle)]
    async with front(tmp_path, a, b) as service:
        await ready(service, 2)
        assert await generate(service) == [5, 6]
    assert (len(a.submitted), len(b.submitted)) == (1, 1)


async def test_when_all_refuse_there_is_one_clear_error(tmp_path: Path) -> None:
    a, b = await two(tmp_path)
    a.script = b.script = lambda s: [unavailable(s.handle)]
    async with front(tmp_path, a, b, resume_s=0.05) as service:
        await ready(service, 2)
        with pytest.raises(grpc.aio.AioRpcError, match="did not come back in time") as caught:
            await generate(service)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_request_waits_for_the_only_scheduler_while_that_is_started_again(tmp_path: Path) -> None:
    a = await one(tmp_path)
    async with front(tmp_path, a) as service:
        await ready(service, 1)
        await a.stop()
        await ready(service, 0)
        answer = asyncio.create_task(generate(service))
        await until(lambda: service._schedulers.num_live == 1)
        again = await one(tmp_path)
        assert await answer == [5, 6]
        await again.stop()
    assert [len(request.resumed) for request in again.submitted] == [0]


async def test_a_request_whose_deadline_passes_while_its_scheduler_is_lost_ends_with_that(
    tmp_path: Path,
) -> None:
    a = await one(tmp_path)
    a.script = lambda s: [tokens(s.handle, 5)]
    async with front(tmp_path, a) as service:
        await ready(service, 1)
        answer = asyncio.create_task(generate(service, timeout_s=1.0))
        await until(lambda: service._schedulers.num_live == 1)
        await a.stop()
        with pytest.raises(
            grpc.aio.AioRpcError, match="deadline passed while its scheduler was lost"
        ) as caught:
            await answer
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_when_the_only_scheduler_stays_away_requests_are_refused_at_once(tmp_path: Path) -> None:
    a = await one(tmp_path)
    async with front(tmp_path, a, resume_s=0.2) as service:
        await ready(service, 1)
        await a.stop()
        await until(lambda: service._state() == types_pb2.SERVICE_STATE_STARTING)
        with pytest.raises(grpc.aio.AioRpcError, match="the scheduler is away; try again") as caught:
            await generate(service)
        # What it serves is still known, to those who ask for the list of models.
        assert service._announcement().model.vocab_size == VOCAB_SIZE
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_gateways_are_told_when_the_only_scheduler_has_been_away_for_too_long(tmp_path: Path) -> None:
    a = await one(tmp_path)
    async with front(tmp_path, a, resume_s=0.2) as service, open_channel(service.rpc.address) as channel:
        await ready(service, 1)
        states = [types_pb2.SERVICE_STATE_UNSPECIFIED]
        session = tokenizer_pb2_grpc.TokenizerStub(channel).Session()
        await a.stop()
        while states[-1] != types_pb2.SERVICE_STATE_STARTING:
            states.append((await session.read()).announcement.state)
        session.cancel()
    assert types_pb2.SERVICE_STATE_READY in states


async def test_a_fault_of_ours_costs_one_request_and_its_log_line_names_the_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = await one(tmp_path)
    async with front(tmp_path, a) as service, open_channel(service.rpc.address) as channel:
        await ready(service, 1)

        async def broken(*_: object) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(service._generation, "submit", broken)
        session = tokenizer_pb2_grpc.TokenizerStub(channel).Session()
        trace = types_pb2.TraceContext(traceparent=TRACEPARENT)
        submit = tokenizer_pb2.TokenizerSessionRequest.Submit(
            handle=7, request=tokenizer_pb2.TextRequest(text="Hello", trace=trace)
        )
        with traced_logs() as logs:
            await session.write(tokenizer_pb2.TokenizerSessionRequest(submit=submit))
            while not (message := await session.read()).deltas:
                pass
        session.cancel()
    (delta,) = message.deltas
    assert (delta.handle, delta.error.code) == (7, types_pb2.ERROR_CODE_INTERNAL)
    assert "secret" not in delta.error.message
    (line,) = logs.entries
    assert (line["event"], line["trace_id"]) == ("a request could not be prepared", TRACE_ID)


async def test_a_scheduler_that_registers_is_found_and_one_that_leaves_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = redis_client.open_redis("")
    monkeypatch.setattr(tokenizer_server, "open_redis", lambda _url: registry)
    a, b = await two(tmp_path)
    async with front(tmp_path, schedulers=(), redis_url="redis://here") as service:
        entry = Registration(registry, "scheduler", "a", lambda: {"address": a.address})
        await Registration(registry, "scheduler", "odd", dict).beat()
        await entry.beat()
        await ready(service, 1)
        assert await generate(service) == [5, 6]
        await entry.withdraw()
        await a.stop()
        await Registration(registry, "scheduler", "b", lambda: {"address": b.address}).beat()
        await ready(service, 1)
        assert await generate(service) == [5, 6]
        await b.stop()
    assert (len(a.submitted), len(b.submitted)) == (1, 1)


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests leave a scheduler without a worker at once."""
    monkeypatch.setattr(schedulers, "STRANDED_S", 0.0)


def resumed(request: scheduler_pb2.TokenRequest) -> dict[int, list[int]]:
    return {part.sequence: unpack_int32(part.token_ids).tolist() for part in request.resumed}


@pytest.mark.usefixtures("no_patience")
async def test_a_request_leaves_a_scheduler_without_a_worker_for_one_that_has_some(tmp_path: Path) -> None:
    a, b = await two(tmp_path)
    a.script = lambda s: [tokens(s.handle, 3, 4), announcement(has_worker=False)]
    async with front(tmp_path, a, b) as service:
        await ready(service, 2)
        assert await generate(service) == [3, 4, 5, 6]
        await until(lambda: a.received[-1].HasField("cancel"))
    assert resumed(b.submitted[0]) == {0: [3, 4]}
    assert not b.submitted[0].redirected, "it may be sent on to where its prefix is"


async def test_a_request_stays_if_a_worker_is_back_in_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedulers, "STRANDED_S", 3600.0)
    a, b = await two(tmp_path)
    a.script = lambda s: [
        tokens(s.handle, 3, 4),
        announcement(has_worker=False),
        announcement(has_worker=True),
        tokens(s.handle, 5, 6, is_last=True),
    ]
    async with front(tmp_path, a, b) as service:
        await ready(service, 2)
        assert await generate(service) == [3, 4, 5, 6]
    assert not b.submitted


@pytest.mark.usefixtures("no_patience")
async def test_a_sequence_that_had_ended_is_not_generated_again_elsewhere(tmp_path: Path) -> None:
    def of_two(submit: Any, *, is_second: bool) -> scheduler_pb2.SchedulerSessionResponse:
        """A token of each sequence and the first one's end; or the second one's last."""
        sequences = [1] if is_second else [0, 1]
        batch = scheduler_pb2.TokenBatch(
            handles=pack_uint32([submit.handle] * len(sequences)),
            sequences=pack_uint32(sequences),
            token_ids=pack_int32([5 + sequence + 2 * is_second for sequence in sequences]),
        )
        reason = types_pb2.FINISH_REASON_LENGTH
        batch.ends.add(handle=submit.handle, sequence=int(is_second), finish_reason=reason)
        return scheduler_pb2.SchedulerSessionResponse(batch=batch)

    a, b = await two(tmp_path)
    a.script = lambda s: [of_two(s, is_second=False), announcement(has_worker=False)]
    b.script = lambda s: [of_two(s, is_second=True)]
    async with front(tmp_path, a, b) as service:
        await ready(service, 2)
        assert sorted(await generate(service, n=2)) == [5, 6, 8]
        await until(lambda: b.received[-1].HasField("finish"))
    assert resumed(b.submitted[0]) == {0: [5], 1: [6]}
    assert b.received[-1].finish.sequence == 0


async def test_when_no_worker_came_back_in_time_the_only_scheduler_s_error_is_the_answer(
    tmp_path: Path,
) -> None:
    a = await one(tmp_path)
    a.script = lambda s: [announcement(has_worker=False), unavailable(s.handle)]
    async with front(tmp_path, a, resume_s=3600.0) as service:
        await ready(service, 1)
        with pytest.raises(grpc.aio.AioRpcError, match="try again") as caught:
            await generate(service)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.usefixtures("no_patience")
async def test_who_has_tokens_is_not_lost_to_a_full_queue(tmp_path: Path) -> None:
    a, b = await two(tmp_path)
    a.script = lambda s: [tokens(s.handle, 3, 4), announcement(has_worker=False)]

    def full_at_first(submit: Any) -> Any:
        b.script = lambda s: [tokens(s.handle, 5, 6, is_last=True)]
        return [refused(submit.handle)]

    b.script = full_at_first
    async with front(tmp_path, a, b) as service:
        await ready(service, 2)
        assert await generate(service) == [3, 4, 5, 6]
    assert len(b.submitted) == 2


async def test_a_full_queue_refuses_who_has_nothing_yet(tmp_path: Path) -> None:
    a, b = await two(tmp_path)
    a.script = b.script = lambda s: [refused(s.handle)]
    async with front(tmp_path, a, b, resume_s=3600.0) as service:
        await ready(service, 2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(service)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
