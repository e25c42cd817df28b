"""The Scheduler service over real sockets: calls of Generate, refusals, health, drain."""

import asyncio
from collections.abc import AsyncIterable

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quire.errors import InvalidRequest, NotReady, Overloaded, from_rpc_error
from quire.packing import pack_int32, unpack_int32
from quire.rpc.channel import open_channel
from quire.v1 import scheduler_pb2, types_pb2
from tests.scheduler_svc.conftest import (
    Sockets,
    allow_steps,
    expected,
    generate,
    running_pair,
    running_scheduler,
    running_worker,
    token_request,
)


async def test_generate_streams_every_token_and_then_the_ledger(sockets: Sockets) -> None:
    async with running_pair(sockets) as (service, _):
        updates = [update async for update in service.stub.Generate(token_request([5, 6, 7], 40))]
    tokens = [token for update in updates for token in unpack_int32(update.token_ids).tolist()]
    assert tokens == expected([5, 6, 7], 40)
    last = updates[-1]
    assert last.finish_reason == types_pb2.FINISH_REASON_LENGTH
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.computed_tokens) == (3, 40, 42)
    assert all(update.finish_reason == types_pb2.FINISH_REASON_UNSPECIFIED for update in updates[:-1])


async def test_sequences_of_one_request_each_end_once(sockets: Sockets) -> None:
    async with running_pair(sockets) as (service, _):
        updates = [update async for update in service.stub.Generate(token_request([9], 5, n=3))]
    ends = [update.sequence for update in updates if update.finish_reason]
    assert sorted(ends) == [0, 1, 2]


async def test_logprobs_come_beside_their_tokens(sockets: Sockets) -> None:
    request = token_request([9, 8], 6, sampling=types_pb2.SamplingParams(logprobs=2))
    async with running_pair(sockets) as (service, _):
        # A neighbour without log-probabilities shares the batch.
        _, updates = await asyncio.gather(
            generate(service, token_request([1], 30)), _collect(service.stub.Generate(request))
        )
    chosen = [token for update in updates for token in unpack_int32(update.token_ids).tolist()]
    top = [token for update in updates for token in unpack_int32(update.logprobs.top_token_ids).tolist()[::2]]
    assert top == chosen == expected([9, 8], 6)


async def _collect(call: AsyncIterable[scheduler_pb2.TokenUpdate]) -> list[scheduler_pb2.TokenUpdate]:
    return [update async for update in call]


async def test_a_client_that_leaves_generate_frees_its_row_within_two_steps(sockets: Sockets) -> None:
    # Steps longer than their round trip: two commands are in flight.
    async with running_pair(sockets, worker={"step_us": 2000}, max_decode_steps=1) as (service, worker):
        steps = allow_steps(worker, 3)
        call = service.stub.Generate(token_request([1, 2, 3], 400))
        await call.read()
        before = await service.until_retired(3)
        assert (before.last_step_sent, before.rows_used) == (5, 1)
        call.cancel()
        await service.until_running(0)
        steps.release_all()
        after = await service.until_free()
        # Two commands were in flight; the next one removed the row.
        assert after.last_step_sent == before.last_step_sent + 1


async def test_n_has_a_limit(sockets: Sockets) -> None:
    async with running_pair(sockets, max_sequences_per_request=8) as (service, _):
        for n in (9, 2**32 - 1):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await generate(service, token_request([1], 3, n=n))
            error = from_rpc_error(caught.value)
            assert isinstance(error, InvalidRequest)
            assert error.param == "n"
        updates = await _collect(service.stub.Generate(token_request([1], 3, n=8)))
    assert sorted(update.sequence for update in updates if update.finish_reason) == list(range(8))


async def test_a_full_queue_refuses_and_says_when_to_come_again(sockets: Sockets) -> None:
    limits = {"max_queue_requests": 2, "max_decode_steps": 1}
    async with running_pair(sockets, worker={"max_rows": 1, "step_us": 1000}, **limits) as (service, _):
        calls = [service.stub.Generate(token_request([1], 400))]
        await calls[0].read()
        calls += [service.stub.Generate(token_request([2], 4)) for _ in range(2)]
        async with asyncio.timeout(60):
            while (await service.status()).sequences_waiting < 2:
                await asyncio.sleep(0.005)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(service, token_request([3], 4))
        error = from_rpc_error(caught.value)
        assert isinstance(error, Overloaded)
        assert error.retry_after_s is not None
        assert error.retry_after_s >= 1.0
        calls[0].cancel()
        assert [len(await _collect(call)) > 0 for call in calls[1:]] == [True, True]


async def test_requests_that_no_worker_has_been_seen_for_are_not_taken(sockets: Sockets) -> None:
    async with running_scheduler(sockets("scheduler"), sockets("worker")) as service:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(service, token_request([3], 4))
        assert isinstance(from_rpc_error(caught.value), NotReady)


async def test_health_follows_the_worker_and_a_standby_is_healthy(sockets: Sockets) -> None:
    async with (
        running_scheduler(sockets("scheduler"), sockets("worker")) as service,
        open_channel(service.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="quire.v1.Scheduler"))
        process = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        async with asyncio.timeout(60):
            while (await process.read()).status != health_pb2.HealthCheckResponse.SERVING:
                pass  # not listening long enough yet
        async with running_worker(sockets("worker")):
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        await service.servicer.drain()
        assert (await process.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        process.cancel()


async def test_draining_finishes_what_runs_and_takes_nothing_new(sockets: Sockets) -> None:
    async with running_pair(sockets, worker={"step_us": 1000}, max_decode_steps=1) as (service, _):
        running = aiter(service.stub.Generate(token_request([1], 100)))
        await anext(running)
        answer = await service.stub.Drain(types_pb2.DrainRequest())
        assert answer.num_requests == 1
        await service.shutdown.wait()  # the process's own part: it now calls drain
        draining = asyncio.create_task(service.servicer.drain())
        await service.until_state(types_pb2.SERVICE_STATE_DRAINING)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(service, token_request([2], 4))
        assert isinstance(from_rpc_error(caught.value), NotReady)
        rest = await _collect(running)
        assert rest[-1].finish_reason == types_pb2.FINISH_REASON_LENGTH
        await draining
        await service.servicer._settlement.flush()
        # The request that was not taken goes on elsewhere: it is not refused.
        marks = await service.servicer._redis.keys("quire:settled:*")
        assert [bytes(key).endswith(b":0") for key in marks] == [True]


async def test_a_resumed_sequence_goes_on_where_it_was(sockets: Sockets) -> None:
    whole = expected([4, 4], 30)
    resumed = scheduler_pb2.ResumedSequence(sequence=0, token_ids=pack_int32(whole[:12]))
    async with running_pair(sockets) as (service, _):
        updates = await _collect(service.stub.Generate(token_request([4, 4], 30, resumed=[resumed])))
    tokens = [token for update in updates for token in unpack_int32(update.token_ids).tolist()]
    assert tokens == whole[12:]
    assert updates[-1].usage.completion_tokens == 30
