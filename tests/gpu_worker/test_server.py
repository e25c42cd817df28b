"""The Worker service over real sockets: loading, the lease, and streams that end badly."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace

from gpu_worker import server as server_module
from gpu_worker.launched_step import LaunchedStep
from gpu_worker.server import LEASE_KEY, WorkerServicer
from gpu_worker.settings import WorkerSettings
from quire import telemetry
from quire.errors import Internal
from quire.packing import pack_int32, pack_uint32, unpack_int32
from quire.rpc.channel import open_channel
from quire.service import Shutdown
from quire.v1 import types_pb2, worker_pb2, worker_pb2_grpc
from tests.support.checkpoints import checkpoint
from tests.support.traced_logs import TRACE_ID, TRACEPARENT, traced_logs
from tests.support.transformers_reference import greedy_tokens
from tests.support.worker_driver import greedy

PROMPT = [5, 6, 7, 8]


def settings(tmp_path: Path, **fields: Any) -> WorkerSettings:
    defaults = {
        name: field.get_default()
        for name, field in WorkerSettings.model_fields.items()
        if not field.is_required()
    }
    values = {"listen": f"unix:{tmp_path}/worker", "model": str(checkpoint()), "threads": 1, "max_rows": 4}
    return WorkerSettings.model_construct(**(defaults | values | fields))


@asynccontextmanager
async def worker(
    tmp_path: Path, **fields: Any
) -> AsyncIterator[tuple[worker_pb2_grpc.WorkerAsyncStub, Shutdown]]:
    """A worker that has begun to load, and a stub to it."""
    shutdown = Shutdown()
    service = WorkerServicer(settings(tmp_path, **fields), shutdown)
    await service.start()
    async with open_channel(service.rpc.address) as channel:
        try:
            yield worker_pb2_grpc.WorkerStub(channel), shutdown
        finally:
            await service.stop()


@pytest.mark.parametrize("is_there", [True, False])
async def test_what_follows_loading_is_done_once_if_the_model_is_there(
    tmp_path: Path, is_there: bool
) -> None:
    calls: list[str] = []
    fields = {} if is_there else {"model": str(tmp_path / "nowhere")}
    shutdown = Shutdown()
    service = WorkerServicer(settings(tmp_path, **fields), shutdown, on_loaded=lambda: calls.append("loaded"))
    await service.start()
    async with open_channel(service.rpc.address) as channel:
        if is_there:
            await loaded(worker_pb2_grpc.WorkerStub(channel))
        else:
            await shutdown.wait()
    await service.stop()
    assert calls == ["loaded"] * is_there


async def loaded(stub: worker_pb2_grpc.WorkerAsyncStub) -> worker_pb2.WorkerDescription:
    while (await stub.GetStatus(types_pb2.GetStatusRequest())).state != types_pb2.SERVICE_STATE_READY:
        await asyncio.sleep(0.01)
    return await stub.Describe(worker_pb2.DescribeRequest())


def run(stub: worker_pb2_grpc.WorkerAsyncStub, lease: object = 1) -> Any:
    return stub.Run(metadata=((LEASE_KEY, str(lease)),))


def first_command(*, lease: int = 1, max_tokens: int = 50) -> worker_pb2.StepCommand:
    added = worker_pb2.RowAdd(
        row=0,
        epoch=1,
        token_ids=pack_int32(PROMPT),
        num_prompt_tokens=len(PROMPT),
        block_ids=pack_int32(range(4)),
        max_total_tokens=len(PROMPT) + max_tokens,
        sampling=greedy(),
    )
    return worker_pb2.StepCommand(
        step_id=1,
        lease_epoch=lease,
        add_rows=[added],
        prefill_rows=pack_uint32([0]),
        prefill_num_tokens=pack_uint32([len(PROMPT)]),
        decode_steps=3,
    )


async def status_code(awaitable: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    assert caught.value.details()
    return caught.value.code()


async def rows_used(stub: worker_pb2_grpc.WorkerAsyncStub) -> int:
    return (await stub.GetStatus(types_pb2.GetStatusRequest())).rows_used


async def test_it_answers_while_it_loads_and_describes_itself_once_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_load, load = threading.Event(), server_module.load

    def load_when_told(*arguments: Any) -> Any:
        may_load.wait()
        return load(*arguments)

    monkeypatch.setattr(server_module, "load", load_when_told)
    async with worker(tmp_path) as (stub, _):
        assert (await stub.GetStatus(types_pb2.GetStatusRequest())).state == types_pb2.SERVICE_STATE_STARTING
        assert await status_code(stub.Describe(worker_pb2.DescribeRequest())) is grpc.StatusCode.UNAVAILABLE
        assert await status_code(anext(aiter(run(stub)))) is grpc.StatusCode.UNAVAILABLE
        may_load.set()
        description = await loaded(stub)
    assert (description.model.architecture, description.block_size) == ("LlamaForCausalLM", 16)
    assert unpack_int32(description.model.eos_token_ids).tolist() == [2]
    assert description.num_blocks * description.block_size >= description.model.max_model_len


async def test_commands_are_answered_in_order_and_half_closing_ends_cleanly(tmp_path: Path) -> None:
    async with worker(tmp_path) as (stub, _):
        await loaded(stub)
        call = run(stub)
        await call.write(first_command())
        for step in (2, 3):
            await call.write(worker_pb2.StepCommand(step_id=step, lease_epoch=1, decode_steps=2))
        await call.done_writing()
        results = [result async for result in call]
        assert [result.step_id for result in results] == [1, 2, 3]
        tokens = [token for result in results for token in unpack_int32(result.token_ids).tolist()]
        assert tokens == greedy_tokens(checkpoint(), PROMPT, 7)
        assert await call.code() is grpc.StatusCode.OK


async def test_a_newer_lease_takes_the_rows_and_an_older_one_gets_nothing(tmp_path: Path) -> None:
    async with worker(tmp_path) as (stub, _):
        await loaded(stub)
        older = run(stub, 5)
        await older.write(first_command(lease=5))
        await anext(aiter(older))
        assert await rows_used(stub) == 1
        newer = run(stub, 6)
        await newer.initial_metadata()
        assert await status_code(anext(aiter(older))) is grpc.StatusCode.ABORTED
        await newer.write(first_command(lease=6))  # row 0 is free again
        assert (await anext(aiter(newer))).step_id == 1
        assert await status_code(anext(aiter(run(stub, 5)))) is grpc.StatusCode.ABORTED
        await newer.write(worker_pb2.StepCommand(step_id=2, lease_epoch=5))
        assert await status_code(anext(aiter(newer))) is grpc.StatusCode.ABORTED


async def test_a_stream_opens_once_the_device_answers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, goes_on, wait = threading.Event(), threading.Event(), LaunchedStep.wait

    def hang(step: LaunchedStep) -> worker_pb2.StepResult:
        hangs.set()
        goes_on.wait()
        return wait(step)

    async with worker(tmp_path) as (stub, _):
        await loaded(stub)
        monkeypatch.setattr(LaunchedStep, "wait", hang)
        hanging = run(stub, 1)
        await hanging.write(first_command())
        await asyncio.to_thread(hangs.wait)
        again = run(stub, 2)
        opened = asyncio.ensure_future(again.initial_metadata())
        # The process lives and answers; only the device does not.
        assert await status_code(anext(aiter(hanging))) is grpc.StatusCode.ABORTED
        assert not opened.done()
        goes_on.set()
        await opened
        await again.write(first_command(lease=2))
        assert (await anext(aiter(again))).step_id == 1


async def test_a_row_that_fails_is_logged_with_the_trace_of_its_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = LaunchedStep.wait

    def fail(step: LaunchedStep) -> worker_pb2.StepResult:
        result = wait(step)
        result.errors.add(row=0, epoch=1, error=Internal("the logits are no numbers").to_proto())
        return result

    monkeypatch.setattr(telemetry, "_tracer", trace.get_tracer("tests"))
    monkeypatch.setattr(LaunchedStep, "wait", fail)
    async with worker(tmp_path) as (stub, _):
        await loaded(stub)
        call, command = run(stub), first_command()
        command.add_rows[0].trace.traceparent = TRACEPARENT
        with traced_logs() as logs:
            await call.write(command)
            await anext(aiter(call))
    (line,) = [entry for entry in logs.entries if entry["event"] == "a row failed"]
    assert (line["row"], line["trace_id"]) == (0, TRACE_ID)


@pytest.mark.parametrize("lease", ["", "-1", "1e3", "x" * 1000, str(2**64)])
async def test_a_lease_that_is_no_number_is_refused(tmp_path: Path, lease: str) -> None:
    async with worker(tmp_path) as (stub, _):
        await loaded(stub)
        assert await status_code(anext(aiter(run(stub, lease)))) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "bad",
    [
        worker_pb2.StepCommand(step_id=7, lease_epoch=1),
        worker_pb2.StepCommand(step_id=1, lease_epoch=1, remove_rows=pack_uint32([3])),
        worker_pb2.StepCommand(step_id=1, lease_epoch=1, prefill_rows=b"abc"),
        worker_pb2.StepCommand(step_id=1, lease_epoch=1, decode_steps=1000),
    ],
)
async def test_a_bad_command_ends_its_stream_and_the_next_one_works(
    tmp_path: Path, bad: worker_pb2.StepCommand
) -> None:
    async with worker(tmp_path) as (stub, _):
        await loaded(stub)
        call = run(stub)
        await call.write(bad)
        assert await status_code(anext(aiter(call))) is grpc.StatusCode.INVALID_ARGUMENT
        again = run(stub)
        await again.write(first_command())
        assert unpack_int32((await anext(aiter(again))).token_ids).tolist() == greedy_tokens(
            checkpoint(), PROMPT, 3
        )


async def test_rows_of_a_scheduler_that_is_gone_are_freed(tmp_path: Path) -> None:
    async with worker(tmp_path) as (stub, _):
        await loaded(stub)
        call = run(stub)
        await call.write(first_command())
        await anext(aiter(call))
        call.cancel()
        while await rows_used(stub):
            await asyncio.sleep(0.01)
        assert (await stub.GetStatus(types_pb2.GetStatusRequest())).blocks_used == 0


async def test_a_checkpoint_that_cannot_be_loaded_ends_the_process_with_one_line(tmp_path: Path) -> None:
    async with worker(tmp_path, model="/no/such/checkpoint") as (_, shutdown):
        await shutdown.wait()
        assert shutdown.failure is not None
        assert "/no/such/checkpoint" in shutdown.failure


async def test_a_kv_cache_too_small_says_what_would_do(tmp_path: Path) -> None:
    async with worker(tmp_path, kv_cache_memory="64KiB") as (_, shutdown):
        await shutdown.wait()
        assert shutdown.failure is not None
        assert "give kv_cache_memory" in shutdown.failure


@pytest.mark.parametrize("error", [ValueError("odd"), KeyError("model.norm.weight"), AssertionError()])
async def test_whatever_stops_the_loading_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(server_module, "load", fail)
    async with worker(tmp_path) as (_, shutdown):
        await shutdown.wait()
        assert shutdown.failure is not None
        assert type(error).__name__ in shutdown.failure


async def test_so_does_what_goes_wrong_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no tags")

    monkeypatch.setattr(server_module, "BlockTags", fail)
    async with worker(tmp_path) as (_, shutdown):
        await shutdown.wait()
        assert shutdown.failure is not None
        assert "no tags" in shutdown.failure
