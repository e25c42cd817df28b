"""Workers that die, hang, come back, or answer to somebody else: streams go on without gap or repeat."""

import asyncio
import signal

import grpc
import pytest

from benchmarks.instant_worker import InstantWorker, InstantWorkerSettings
from quire.errors import DeadlineExceeded, NotReady, from_rpc_error
from quire.packing import unpack_int32
from quire.service import Shutdown
from quire.v1 import types_pb2
from tests.scheduler_svc.conftest import (
    LIMIT_S,
    VOCAB,
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
from tests.scheduler_svc.test_ledger import audited
from tests.scheduler_svc.test_ledger import totals as account
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.fault

PROMPTS = [[number, 3, 5] for number in range(6)]
_SLOW = {"step_us": 2000}


async def _run_all(service: Service, begun: asyncio.Event) -> list[list[int]]:
    """The tokens of every prompt; `begun` is set when each has had some."""
    waiting = len(PROMPTS)

    async def one(prompt: list[int]) -> list[int]:
        nonlocal waiting
        tokens: list[int] = []
        async for update in service.stub.Generate(token_request(prompt, 150)):
            if not tokens:
                waiting -= 1
                if waiting == 0:
                    begun.set()
            tokens += unpack_int32(update.token_ids).tolist()
        return tokens

    return await asyncio.gather(*(one(prompt) for prompt in PROMPTS))


async def test_streams_outlive_a_killed_worker(sockets: Sockets) -> None:
    async with running_scheduler(sockets("scheduler"), sockets("worker"), max_decode_steps=1) as service:
        begun = asyncio.Event()
        with worker_process(sockets("worker"), **_SLOW) as process:
            await service.until_state(types_pb2.SERVICE_STATE_READY)
            streams = asyncio.create_task(_run_all(service, begun))
            await begun.wait()
            process.send_signal(signal.SIGKILL)
            process.wait()
        await service.until_state(types_pb2.SERVICE_STATE_STARTING)
        with worker_process(sockets("worker")):
            assert await streams == [expected(prompt, 150) for prompt in PROMPTS]
            await service.until_free()


async def test_streams_move_to_the_worker_that_is_left(sockets: Sockets) -> None:
    addresses = (sockets("worker-0"), sockets("worker-1"))
    async with running_scheduler(sockets("scheduler"), *addresses, max_decode_steps=1) as service:
        begun = asyncio.Event()
        with worker_process(addresses[0], **_SLOW) as first, worker_process(addresses[1], **_SLOW):
            async with asyncio.timeout(LIMIT_S):
                while sum(replica.connected for replica in (await service.status()).replicas) < 2:
                    await asyncio.sleep(0.005)
            streams = asyncio.create_task(_run_all(service, begun))
            await begun.wait()
            first.send_signal(signal.SIGKILL)
            assert await streams == [expected(prompt, 150) for prompt in PROMPTS]


async def test_a_worker_that_hangs_is_given_up_and_comes_back(sockets: Sockets) -> None:
    settings = {"max_decode_steps": 1, "worker_hang_s": 0.4}
    async with running_scheduler(sockets("scheduler"), sockets("worker"), **settings) as service:
        begun = asyncio.Event()
        with worker_process(sockets("worker"), **_SLOW) as process:
            await service.until_state(types_pb2.SERVICE_STATE_READY)
            streams = asyncio.create_task(_run_all(service, begun))
            await begun.wait()
            process.send_signal(signal.SIGSTOP)
            await service.until_state(types_pb2.SERVICE_STATE_STARTING)
            process.send_signal(signal.SIGCONT)
            assert await streams == [expected(prompt, 150) for prompt in PROMPTS]
            (replica,) = (await service.status()).replicas
            assert replica.connected


async def test_the_cache_of_a_worker_outlives_its_stream(sockets: Sockets) -> None:
    prompt = list(range(100))
    async with running_pair(sockets) as (service, worker):
        await generate(service, token_request(prompt, 4))
        (before,) = (await service.status()).replicas
        assert before.blocks_cached > 0
        # Another scheduler takes the lease and goes; the worker's process, and so its blocks, live on.
        async with running_scheduler(sockets("other"), sockets("worker")) as other:
            await other.until_state(types_pb2.SERVICE_STATE_READY)
        await service.until_state(types_pb2.SERVICE_STATE_READY)
        updates = [update async for update in service.stub.Generate(token_request(prompt, 4))]
        assert updates[-1].usage.cached_tokens == 96
        assert worker.violations == []


async def test_requests_wait_for_a_worker_until_their_deadline(sockets: Sockets) -> None:
    async with running_scheduler(sockets("scheduler"), sockets("worker")) as service:
        async with running_worker(sockets("worker")):
            await service.until_state(types_pb2.SERVICE_STATE_READY)
        await service.until_state(types_pb2.SERVICE_STATE_STARTING)
        patient = asyncio.create_task(generate(service, token_request([1], 5)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generate(service, token_request([2], 5, timeout_s=0.05))
        assert isinstance(from_rpc_error(caught.value), DeadlineExceeded)
        async with running_worker(sockets("worker")):
            assert await patient == expected([1], 5)


async def test_requests_end_with_an_error_to_try_again_if_no_worker_comes_back(
    sockets: Sockets, redis_server: RedisServer
) -> None:
    settings = {"max_decode_steps": 1, "worker_return_s": 0.3, "redis_url": redis_server.url}
    async with running_scheduler(sockets("scheduler"), sockets("worker"), **settings) as service:
        begun = asyncio.Event()
        with worker_process(sockets("worker"), **_SLOW) as process:
            await service.until_state(types_pb2.SERVICE_STATE_READY)
            streams = [asyncio.create_task(_run_one(service, number, begun)) for number in range(4)]
            await begun.wait()
            process.send_signal(signal.SIGKILL)
        for outcome in await asyncio.gather(*streams, return_exceptions=True):
            assert isinstance(outcome, grpc.aio.AioRpcError)
            error = from_rpc_error(outcome)
            assert isinstance(error, NotReady)
            assert error.retry_after_s
        with pytest.raises(grpc.aio.AioRpcError, match="try again"):
            await generate(service, token_request([1], 5))
        await service.servicer._settlement.flush()
        found = await account(service.servicer._redis)
        assert found["computed_tokens"] == await audited(service.servicer._redis) > 0
        assert (found["requests"], found["errors"]) == (4, 4)
        assert "refusals" not in found, "that there is no worker says nothing of the request"
        async with running_worker(sockets("worker")):
            await service.until_state(types_pb2.SERVICE_STATE_READY)
            assert await generate(service, token_request([1], 5)) == expected([1], 5)


async def _run_one(service: Service, number: int, begun: asyncio.Event) -> None:
    """A long stream; `begun` is set with its first tokens."""
    async for _ in service.stub.Generate(token_request([number, 3, 5], 400, request_id=f"r{number}")):
        begun.set()


async def test_the_last_worker_finishes_what_it_has_when_it_leaves(sockets: Sockets) -> None:
    shutdown = Shutdown()
    settings = InstantWorkerSettings(listen=sockets("worker"), vocab_size=VOCAB, step_us=1000)
    leaving = InstantWorker(settings, shutdown)
    await leaving.start()
    async with running_scheduler(sockets("scheduler"), sockets("worker"), max_decode_steps=1) as service:
        await service.until_state(types_pb2.SERVICE_STATE_READY)
        begun = asyncio.Event()
        streams = asyncio.create_task(_run_all(service, begun))
        await begun.wait()
        draining = asyncio.create_task(leaving.drain())
        # New requests are for others, and wait here for another worker.
        await service.until_state(types_pb2.SERVICE_STATE_STARTING)
        waiting = asyncio.create_task(generate(service, token_request([1], 5)))
        assert await streams == [expected(prompt, 150) for prompt in PROMPTS]
        await draining
        await leaving.stop()
        assert not waiting.done()
        async with running_worker(sockets("worker")):
            assert await waiting == expected([1], 5)


async def test_a_worker_of_another_model_is_refused_while_requests_live(sockets: Sockets) -> None:
    async with running_scheduler(sockets("scheduler"), sockets("worker")) as service:
        async with running_worker(sockets("worker")):
            await service.until_state(types_pb2.SERVICE_STATE_READY)
        await service.until_state(types_pb2.SERVICE_STATE_STARTING)
        waiting = asyncio.create_task(generate(service, token_request([1], 5)))
        async with asyncio.timeout(LIMIT_S):
            while (await service.status()).sequences_waiting == 0:
                await asyncio.sleep(0.005)
        async with running_worker(sockets("worker"), model_name="other") as worker:
            async with asyncio.timeout(LIMIT_S):
                while worker._lease_epoch == 0:
                    await asyncio.sleep(0.005)
            assert (await service.status()).state == types_pb2.SERVICE_STATE_STARTING
        async with running_worker(sockets("worker")):
            assert await waiting == expected([1], 5)
