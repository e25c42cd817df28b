"""The ledgers of a running scheduler: their sum is what the workers computed, whatever becomes of requests."""

import asyncio
import signal
from contextlib import suppress

import grpc
import pytest
import redis.asyncio as redis

from quire import redis_client as redis_client_module
from quire.packing import pack_int32, unpack_int32
from quire.redis_client import open_redis
from quire.v1 import scheduler_pb2, types_pb2
from tests.scheduler_svc.conftest import (
    Service,
    Sockets,
    expected,
    generate,
    running_pair,
    running_scheduler,
    running_worker,
    token_request,
    worker_process,
)
from tests.support.redis_server import RedisServer

Kind = scheduler_pb2.SchedulerSessionRequest


async def totals(client: redis.Redis) -> dict[str, int]:
    """Every field, over all tenants."""
    found: dict[str, int] = {}
    for key in await client.keys("quire:usage:*"):
        for name, value in (await client.hgetall(key)).items():
            found[name.decode()] = found.get(name.decode(), 0) + int(value)  # type: ignore[union-attr]
    return found


async def audited(client: redis.Redis) -> int:
    """What workers told schedulers that they computed."""
    values = [await client.hvals(key) for key in await client.keys("quire:computed:*")]
    return sum(int(value) for found in values for value in found)


async def run_every_kind_of_end(service: Service) -> None:
    """Stops, limits, cancels, clients that leave, refusals, several sequences, and more than there are blocks for."""
    stop = expected([1, 2, 3], 8)[6]

    async def leave_early(number: int) -> None:
        call = service.stub.Generate(token_request([50 + number] * 40, 300, request_id=f"left{number}"))
        await call.read()
        call.cancel()

    async def refused(number: int) -> None:
        with suppress(grpc.aio.AioRpcError):
            await generate(service, token_request([1], 4, n=99, request_id=f"refused{number}"))

    def stopping(number: int) -> scheduler_pb2.TokenRequest:
        sampling = types_pb2.SamplingParams(temperature=0.0, max_tokens=50, stop_token_ids=pack_int32([stop]))
        return token_request([1, 2, 3], 50, request_id=f"stop{number}", sampling=sampling, tenant="a")

    async def cancel_some() -> None:
        call = service.stub.Session()
        for handle in range(6):
            request = token_request([handle] * 30, 100, request_id=f"session{handle}", tenant="b")
            await call.write(Kind(submit=Kind.Submit(handle=handle, request=request)))
        started: set[int] = set()
        while len(started) < 3:
            started |= set((await call.read()).batch.handles[::4])
        for handle in (1, 3, 5):
            await call.write(Kind(cancel=Kind.Cancel(handle=handle)))
        await call.write(Kind(finish=Kind.Finish(handle=0, sequence=0)))
        ended: set[int] = set()
        while not ended >= {0, 2, 4}:
            ended |= {end.handle for end in (await call.read()).batch.ends}
        call.cancel()

    await asyncio.gather(
        cancel_some(),
        *(leave_early(number) for number in range(4)),
        *(refused(number) for number in range(3)),
        *(generate(service, stopping(number)) for number in range(4)),
        *(
            generate(service, token_request([n] * 60, 150 + n, n=2, request_id=f"two{n}", tenant="c"))
            for n in range(4)
        ),
    )


@pytest.mark.parametrize("kind", ["embedded", "server"])
async def test_ledgers_add_up_to_what_the_worker_computed_at_every_kind_of_end(
    sockets: Sockets, redis_server: RedisServer, kind: str
) -> None:
    url = redis_server.url if kind == "server" else ""
    worker_settings: dict[str, object] = {"num_blocks": 40, "step_us": 300}
    async with running_pair(sockets, worker=worker_settings, redis_url=url) as (service, worker):
        await run_every_kind_of_end(service)
        await service.until_free()
        await service.servicer._settlement.flush()
        client = service.servicer._redis
        found = await totals(client)
        assert found["computed_tokens"] == worker.rows.tokens_computed == await audited(client)
        assert found["requests"] == 6 + 4 + 4 + 4
        assert found["refusals"] == 3
        assert found["preemptions"] > 0, "there were blocks for all of them"


@pytest.mark.parametrize("ids", [{"request_id": "same", "ledger_id": "same"}, {}], ids=["one id", "no id"])
async def test_calls_that_name_themselves_alike_are_each_charged(
    sockets: Sockets, ids: dict[str, str]
) -> None:
    async with running_pair(sockets) as (service, worker):
        for length in range(3, 8):
            request = token_request([length] * length, 10 * length, **ids)
            request.request_id = ids.get("request_id", "")
            await generate(service, request)
        await service.until_free()
        await service.servicer._settlement.flush()
        client = service.servicer._redis
        found = await totals(client)
        assert (found["requests"], found["prompt_tokens"], found["completion_tokens"]) == (5, 25, 250)
        assert found["computed_tokens"] == worker.rows.tokens_computed
        marks = [(key, await client.get(key)) for key in await client.keys("quire:settled:*")]
        assert len(marks) == 5
        assert all(len(key) + len(mark) < 100 for key, mark in marks)


async def test_ids_that_are_too_long_are_refused_and_cost_no_memory(sockets: Sockets) -> None:
    async with running_pair(sockets) as (service, _):
        for ids in ({"request_id": "x" * 257}, {"ledger_id": "x" * 65}):
            request = token_request([1, 2, 3], 5, **ids)
            request.resumed.add(sequence=0, token_ids=pack_int32([9]))
            with pytest.raises(grpc.aio.AioRpcError, match="at most") as caught:
                await generate(service, request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await service.servicer._settlement.flush()
        assert (await totals(service.servicer._redis)) == {"refusals": 2}
        keys = await service.servicer._redis.keys("quire:settled:*")
        assert max(map(len, keys)) < 100


async def test_sequences_of_one_request_are_charged_its_prompt_and_what_was_cached_of_it_once(
    sockets: Sockets,
) -> None:
    async with running_pair(sockets) as (service, worker):
        async for _ in service.stub.Generate(token_request(list(range(65)), 5, n=4)):
            pass
        await service.until_free()
        await service.servicer._settlement.flush()
        found = await totals(service.servicer._redis)
        assert found["requests"] == 1
        assert (found["prompt_tokens"], found.get("cached_tokens", 0)) == (65, 0)
        assert found["completion_tokens"] == 20
        # The first computes the prompt; the others, what its last block has of it.
        assert found["computed_tokens"] == worker.rows.tokens_computed == 65 + 3 * 1 + 4 * 4


async def test_settling_writes_no_more_often_than_steps_are_made(
    sockets: Sockets, redis_server: RedisServer
) -> None:
    async with running_pair(sockets, redis_url=redis_server.url) as (service, worker):
        await asyncio.gather(
            *(generate(service, token_request([n], 1 + n % 7, request_id=f"r{n}")) for n in range(200))
        )
        await service.until_free()
        await service.servicer._settlement.flush()
        commands = await service.servicer._redis.info("commandstats")
        assert 1 <= commands["cmdstat_dbsize"]["calls"] <= worker.rows.steps_executed
        assert (await totals(service.servicer._redis))["requests"] == 200


async def test_no_step_waits_for_a_redis_that_does_not_answer(
    sockets: Sockets, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever waited for it would wait for ever.
    monkeypatch.setattr(redis_client_module, "TIMEOUT_S", 3600.0)
    async with running_pair(sockets, redis_url=redis_server.url) as (service, _):
        redis_server.pause()
        prompts = [[number] * (20 + number) for number in range(40)]
        found = await asyncio.gather(*(generate(service, token_request(prompt, 60)) for prompt in prompts))
        assert found == [expected(prompt, 60) for prompt in prompts]
        redis_server.resume()


async def test_a_stream_that_breaks_leaves_the_ledger_exact(
    sockets: Sockets, redis_server: RedisServer
) -> None:
    settings = {"redis_url": redis_server.url, "max_decode_steps": 1}
    client = open_redis(redis_server.url)
    async with running_scheduler(sockets("scheduler"), sockets("worker"), **settings) as service:
        with worker_process(sockets("worker"), step_us=1000) as process:
            await service.until_state(types_pb2.SERVICE_STATE_READY)
            prompts = [[number, 3, 5] for number in range(6)]
            running = [
                asyncio.create_task(generate(service, token_request(prompt, 120, request_id=f"r{prompt[0]}")))
                for prompt in prompts
            ]
            await service.until_running(6)
            process.send_signal(signal.SIGKILL)
            process.wait()
        async with running_worker(sockets("worker")) as worker:
            assert await asyncio.gather(*running) == [expected(prompt, 120) for prompt in prompts]
            await service.until_free()
            await service.servicer._settlement.flush()
            found = await totals(client)
            assert found["computed_tokens"] == await audited(client) > worker.rows.tokens_computed
            assert (found["requests"], found["completion_tokens"]) == (6, 720)
            assert found["recomputed_tokens"] > 0
    await client.aclose()


async def test_a_scheduler_that_leaves_settles_what_it_did_of_requests_that_go_on_elsewhere(
    sockets: Sockets, redis_server: RedisServer
) -> None:
    """Its successor is given the tokens so far, as the tokenizer service does it."""
    prompt, so_far = list(range(50)), list[int]()
    client = open_redis(redis_server.url)
    async with running_worker(sockets("worker"), step_us=1000) as worker:
        settings = {"redis_url": redis_server.url, "max_decode_steps": 1}
        async with running_scheduler(sockets("scheduler"), sockets("worker"), **settings) as service:
            await service.until_state(types_pb2.SERVICE_STATE_READY)
            call = service.stub.Session()
            request = token_request(prompt, 200, ledger_id="r")
            await call.write(Kind(submit=Kind.Submit(handle=1, request=request)))
            while len(so_far) < 20:
                so_far += unpack_int32((await call.read()).batch.token_ids).tolist()
        first = await totals(client)
        assert first["computed_tokens"] == worker.rows.tokens_computed
        async with running_scheduler(sockets("scheduler"), sockets("worker"), **settings) as service:
            await service.until_state(types_pb2.SERVICE_STATE_READY)
            request.resumed.add(sequence=0, token_ids=pack_int32(so_far))
            assert so_far + await generate(service, request) == expected(prompt, 200)
        found = await totals(client)
        assert found["computed_tokens"] == worker.rows.tokens_computed == await audited(client)
        assert (found["requests"], found["prompt_tokens"], found["completion_tokens"]) == (1, 50, 200)
    await client.aclose()
