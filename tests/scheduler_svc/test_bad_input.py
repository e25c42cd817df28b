"""Whatever a caller sends, it gets a clear error of its own, and the next good request is served."""

import os

import grpc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quire.packing import pack_int32
from quire.rpc.channel import open_channel
from quire.v1 import scheduler_pb2, types_pb2
from tests.scheduler_svc.conftest import Service, Sockets, expected, generate, running_pair, token_request

_floats = st.floats(width=32) | st.none()
_uint32 = st.integers(0, 2**32 - 1)
_packed = st.binary(max_size=20) | st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5).map(pack_int32)


@st.composite
def samplings(draw: st.DrawFn) -> types_pb2.SamplingParams:
    return types_pb2.SamplingParams(
        temperature=draw(_floats),
        top_k=draw(st.integers(-(2**31), 2**31 - 1)),
        top_p=draw(_floats),
        min_p=draw(_floats),
        repetition_penalty=draw(_floats),
        frequency_penalty=draw(_floats),
        presence_penalty=draw(_floats),
        logit_bias_token_ids=draw(_packed),
        logit_bias_values=draw(st.binary(max_size=20)),
        logprobs=draw(_uint32 | st.none()),
        max_tokens=draw(st.integers(0, 3) | _uint32),
        min_tokens=draw(st.integers(0, 3) | _uint32),
        stop_token_ids=draw(_packed),
        grammar=draw(st.none() | st.just(types_pb2.Grammar(regex="a+"))),
    )


requests = st.builds(
    scheduler_pb2.TokenRequest,
    request_id=st.text(max_size=5),
    prompt_token_ids=_packed | st.just(pack_int32([1, 2])),
    sampling=st.just(types_pb2.SamplingParams(max_tokens=2)) | samplings(),
    n=st.integers(0, 3) | _uint32,
    tenant=st.text(max_size=3),
    priority=st.integers(-(2**31), 2**31 - 1),
    timeout_s=st.none() | st.floats(),
    trace=st.none() | st.builds(types_pb2.TraceContext, traceparent=st.text(max_size=60)),
    resumed=st.lists(
        st.builds(scheduler_pb2.ResumedSequence, sequence=st.integers(0, 3) | _uint32, token_ids=_packed),
        max_size=2,
    ),
)

_CLEAR = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


async def _problem(service: Service, request: scheduler_pb2.TokenRequest) -> grpc.aio.AioRpcError | None:
    """How a request was refused; None if it was served."""
    try:
        await generate(service, request)
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def test_random_requests_get_tokens_or_a_clear_error(sockets: Sockets) -> None:
    async with running_pair(sockets, max_sequences_per_request=4) as (service, worker):
        examples: list[scheduler_pb2.TokenRequest] = []

        @given(requests)
        @settings(max_examples=300, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        @example(scheduler_pb2.TokenRequest())
        @example(token_request([1, 2], 8))
        def draw(request: scheduler_pb2.TokenRequest) -> None:
            examples.append(request)

        draw()
        problems = [await _problem(service, request) for request in examples]
        refused = [problem for problem in problems if problem is not None]
        assert {problem.code() for problem in refused} <= _CLEAR
        assert all(problem.details() for problem in refused)
        assert 0 < len(refused) < len(examples), "one of the examples is good, one is not"
        assert await generate(service, token_request([1, 2], 8)) == expected([1, 2], 8)
        await service.until_free()
        assert worker.violations == []


@pytest.mark.parametrize("method", ["Generate", "Session", "GetStatus", "Drain"])
async def test_bytes_that_are_no_message_end_only_their_call(sockets: Sockets, method: str) -> None:
    async with running_pair(sockets) as (service, _):
        async with open_channel(service.address) as channel:
            for _ in range(20):
                call = channel.stream_stream(f"/quire.v1.Scheduler/{method}")()
                try:
                    await call.write(b"\xff" + os.urandom(40))
                    await call.done_writing()
                    async for _ in call:
                        pass
                except grpc.aio.AioRpcError:
                    pass
        assert await generate(service, token_request([1, 2], 8)) == expected([1, 2], 8)


async def test_a_bad_request_of_a_session_fails_alone(sockets: Sockets) -> None:
    kind = scheduler_pb2.SchedulerSessionRequest
    async with running_pair(sockets) as (service, _):
        call = service.stub.Session()
        await call.write(kind())
        await call.write(kind(cancel=kind.Cancel(handle=77)))
        await call.write(kind(finish=kind.Finish(handle=77, sequence=2**31)))
        await call.write(kind(submit=kind.Submit(handle=1, request=token_request([], 4))))
        await call.write(kind(submit=kind.Submit(handle=2, request=token_request([7], 4))))
        ends: dict[int, scheduler_pb2.SequenceEnd] = {}
        while len(ends) < 2:
            ends |= {end.handle: end for end in (await call.read()).batch.ends}
        assert ends[1].error.param == "prompt"
        assert ends[2].finish_reason == types_pb2.FINISH_REASON_LENGTH
        call.cancel()


_Kind = scheduler_pb2.SchedulerSessionRequest
_GOOD = 10**6
_handles = st.integers(0, 3) | st.just(2**32 - 1)
session_messages = st.one_of(
    st.builds(_Kind, submit=st.builds(_Kind.Submit, handle=_handles, request=requests)),
    st.builds(_Kind, cancel=st.builds(_Kind.Cancel, handle=_handles)),
    st.builds(_Kind, finish=st.builds(_Kind.Finish, handle=_handles, sequence=st.integers(0, 3) | _uint32)),
    st.just(_Kind()),
)


async def _end_of_good_request(
    service: Service, messages: list[scheduler_pb2.SchedulerSessionRequest]
) -> int:
    """Say all this on a new session, then ask for something good: how many tokens come for that."""
    call = service.stub.Session()
    for message in messages:
        await call.write(message)
    submit = _Kind.Submit(handle=_GOOD, request=token_request([1, 2], 8))
    await call.write(_Kind(submit=submit))
    try:
        while True:
            response = await call.read()
            assert response is not grpc.aio.EOF
            for end in response.batch.ends:
                if end.handle == _GOOD:
                    assert end.finish_reason == types_pb2.FINISH_REASON_LENGTH
                    return int(end.usage.completion_tokens)
                assert end.finish_reason != types_pb2.FINISH_REASON_ERROR or end.error.message
                assert end.error.code != types_pb2.ERROR_CODE_INTERNAL
    finally:
        call.cancel()


async def test_random_messages_on_a_session_never_cost_the_others(sockets: Sockets) -> None:
    async with running_pair(sockets, max_sequences_per_request=4) as (service, worker):
        examples: list[list[scheduler_pb2.SchedulerSessionRequest]] = []

        @given(st.lists(session_messages, max_size=12))
        @settings(max_examples=150, database=None, deadline=None, suppress_health_check=list(HealthCheck))
        def draw(messages: list[scheduler_pb2.SchedulerSessionRequest]) -> None:
            examples.append(messages)

        draw()
        for messages in examples:
            assert await _end_of_good_request(service, messages) == 8
        await service.until_free()
        assert worker.violations == []
