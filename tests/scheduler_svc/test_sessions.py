"""Sessions with tokenizers over real sockets: who serves, batches, cancels, finishes, losses."""

import grpc

from quire.packing import unpack_int32, unpack_uint32
from quire.v1 import scheduler_pb2, types_pb2
from tests.scheduler_svc.conftest import (
    Sockets,
    allow_steps,
    expected,
    running_pair,
    running_scheduler,
    running_worker,
    token_request,
)

Kind = scheduler_pb2.SchedulerSessionRequest


async def test_a_session_is_told_who_serves_and_carries_many_requests(sockets: Sockets) -> None:
    prompts = [[number, number + 1] for number in range(20)]
    async with running_scheduler(sockets("scheduler"), sockets("worker")) as service:
        call = service.stub.Session()
        first = await call.read()
        assert first.announcement.state == types_pb2.SERVICE_STATE_STARTING
        async with running_worker(sockets("worker")):
            while (message := await call.read()).announcement.state != types_pb2.SERVICE_STATE_READY:
                pass
            assert message.announcement.model.vocab_size == 1000
            for handle, prompt in enumerate(prompts):
                submit = Kind.Submit(handle=handle, request=token_request(prompt, 10 + handle))
                await call.write(Kind(submit=submit))
            tokens, ends = await _drain_session(call, len(prompts))
        call.cancel()
    assert tokens == {handle: expected(prompt, 10 + handle) for handle, prompt in enumerate(prompts)}
    assert set(ends) == set(range(20))


async def test_what_is_said_in_one_message_is_heard_in_order(sockets: Sockets) -> None:
    async with running_pair(sockets) as (service, _):
        call = service.stub.Session()
        assert (await call.read()).announcement.takes_more
        submits = [Kind(submit=Kind.Submit(handle=n, request=token_request([n, 7], 9))) for n in range(4)]
        first, *more = submits
        first.more.extend([*more, Kind(cancel=Kind.Cancel(handle=2)), Kind(finish=Kind.Finish(handle=3))])
        await call.write(first)
        tokens, ends = await _drain_session(call, 3)
        call.cancel()
    assert tokens == {handle: expected([handle, 7], 9) for handle in (0, 1)}
    assert set(ends) == {0, 1, 3}
    assert ends[3].usage.completion_tokens == 0


async def test_a_session_is_told_of_every_change(sockets: Sockets) -> None:
    async with running_scheduler(sockets("scheduler"), sockets("worker")) as service:
        call = service.stub.Session()
        epochs: set[int] = set()

        async def until_told(state: types_pb2.ServiceState.ValueType) -> None:
            while True:
                announcement = (await call.read()).announcement
                epochs.add(announcement.scheduler_epoch)
                if announcement.state == state:
                    return

        await until_told(types_pb2.SERVICE_STATE_STARTING)
        for _ in range(2):
            async with running_worker(sockets("worker")):
                await until_told(types_pb2.SERVICE_STATE_READY)
            await until_told(types_pb2.SERVICE_STATE_STARTING)
        await service.servicer.drain()
        await until_told(types_pb2.SERVICE_STATE_DRAINING)
        assert len(epochs) == 1
        call.cancel()


async def _drain_session(
    call: grpc.aio.StreamStreamCall, num_ends: int
) -> tuple[dict[int, list[int]], dict[int, scheduler_pb2.SequenceEnd]]:
    """Read until so many sequences have ended."""
    tokens: dict[int, list[int]] = {}
    ends: dict[int, scheduler_pb2.SequenceEnd] = {}
    while len(ends) < num_ends:
        batch = (await call.read()).batch
        handles = unpack_uint32(batch.handles).tolist()
        counts = unpack_uint32(batch.num_tokens).tolist() if batch.num_tokens else [1] * len(handles)
        values, start = unpack_int32(batch.token_ids).tolist(), 0
        for handle, count in zip(handles, counts, strict=True):
            tokens.setdefault(handle, []).extend(values[start : start + count])
            start += count
        for end in batch.ends:
            assert end.handle not in ends
            ends[end.handle] = end
    return tokens, ends


async def test_two_sessions_share_steps_and_handles_but_not_tokens(sockets: Sockets) -> None:
    async with running_pair(sockets) as (service, worker):
        calls = [service.stub.Session() for _ in range(2)]
        for number, call in enumerate(calls):
            for handle in range(6):
                prompt = [number, handle]
                await call.write(Kind(submit=Kind.Submit(handle=handle, request=token_request(prompt, 30))))
        for number, call in enumerate(calls):
            tokens, _ = await _drain_session(call, 6)
            assert tokens == {handle: expected([number, handle], 30) for handle in range(6)}
            call.cancel()
        assert worker.rows.steps_executed < 12 * 30


async def test_sequences_of_a_request_come_under_their_own_index(sockets: Sockets) -> None:
    async with running_pair(sockets) as (service, _):
        call = service.stub.Session()
        await call.write(Kind(submit=Kind.Submit(handle=5, request=token_request([1, 2], 12, n=3))))
        tokens: dict[int, list[int]] = {index: [] for index in range(3)}
        ends: set[int] = set()
        while len(ends) < 3:
            batch = (await call.read()).batch
            sequences = unpack_uint32(batch.sequences).tolist() or [0] * (len(batch.handles) // 4)
            counts = unpack_uint32(batch.num_tokens).tolist() or [1] * len(sequences)
            values = iter(unpack_int32(batch.token_ids).tolist())
            for sequence, count in zip(sequences, counts, strict=True):
                tokens[sequence] += [next(values) for _ in range(count)]
            ends |= {end.sequence for end in batch.ends}
        assert tokens == dict.fromkeys(range(3), expected([1, 2], 12))
        call.cancel()


async def test_a_cancelled_request_of_a_session_is_silent_and_its_blocks_are_free(sockets: Sockets) -> None:
    async with running_pair(sockets, worker={"step_us": 1000}, max_decode_steps=1) as (service, _):
        call = service.stub.Session()
        await call.write(Kind(submit=Kind.Submit(handle=1, request=token_request([1], 400))))
        while not (await call.read()).batch.handles:
            pass
        await call.write(Kind(cancel=Kind.Cancel(handle=1)))
        await call.write(Kind(submit=Kind.Submit(handle=2, request=token_request([2], 3))))
        _, ends = await _drain_session(call, 1)
        assert set(ends) == {2}
        replica = await service.until_free()
        assert replica.last_step_sent == replica.last_step_retired
        call.cancel()


async def test_a_cancel_in_a_session_frees_row_and_blocks_within_two_steps(sockets: Sockets) -> None:
    # Steps longer than their round trip: two commands are in flight.
    async with running_pair(sockets, worker={"step_us": 2000}, max_decode_steps=1) as (service, worker):
        steps = allow_steps(worker, 3)
        call = service.stub.Session()
        await call.write(Kind(submit=Kind.Submit(handle=1, request=token_request([1], 400))))
        before = await service.until_retired(3)
        await call.write(Kind(cancel=Kind.Cancel(handle=1)))
        await service.until_running(0)
        steps.release_all()
        assert (await service.until_free()).last_step_sent == before.last_step_sent + 1
        call.cancel()


async def test_a_finished_sequence_still_gets_its_ledger(sockets: Sockets) -> None:
    async with running_pair(sockets, worker={"step_us": 1000}, max_decode_steps=1) as (service, _):
        call = service.stub.Session()
        await call.write(Kind(submit=Kind.Submit(handle=1, request=token_request([1], 400))))
        while not (await call.read()).batch.handles:
            pass
        await call.write(Kind(finish=Kind.Finish(handle=1, sequence=0)))
        _, ends = await _drain_session(call, 1)
        assert ends[1].finish_reason == types_pb2.FINISH_REASON_STOP
        assert 0 < ends[1].usage.completion_tokens < 400
        assert ends[1].usage.computed_tokens >= ends[1].usage.completion_tokens
        await service.until_free()
        call.cancel()


async def test_what_a_lost_session_ran_is_freed(sockets: Sockets) -> None:
    async with running_pair(sockets, worker={"step_us": 1000}, max_decode_steps=1) as (service, worker):
        call = service.stub.Session()
        for handle in range(8):
            submit = Kind.Submit(handle=handle, request=token_request([handle], 400))
            await call.write(Kind(submit=submit))
        while not (await call.read()).batch.handles:
            pass
        call.cancel()
        await service.until_free()
        assert int(worker.rows.used.sum()) == 0


async def test_closing_the_sending_side_ends_the_session_and_its_requests(sockets: Sockets) -> None:
    async with running_pair(sockets, worker={"step_us": 1000}, max_decode_steps=1) as (service, worker):
        call = service.stub.Session()
        await call.write(Kind(submit=Kind.Submit(handle=1, request=token_request([1], 400))))
        while not (await call.read()).batch.handles:
            pass
        await call.done_writing()
        while message := await call.read():
            assert not message.batch.ends
        assert await call.code() == grpc.StatusCode.OK
        await service.until_free()
        assert int(worker.rows.used.sum()) == 0
