"""Bad input over HTTP and gRPC, through every service: always a clear error, and the next good request is served."""

import grpc
import openai
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quire.packing import pack_int32
from quire.rpc.channel import open_channel
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc, types_pb2
from tests.support.server import API_KEY, Server

pytestmark = pytest.mark.e2e

HUGE = 10**30
COMPLETION = {"model": "tiny", "prompt": "one", "max_tokens": 2}


async def post(server: Server, path: str, body: bytes) -> tuple[int, bytes]:
    """One raw POST; status and body."""
    import httpx2

    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    async with httpx2.AsyncClient() as client:
        response = await client.post(server.url + path, content=body, headers=headers, timeout=60)
        return response.status_code, response.content


def is_served(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=API_KEY, max_retries=0) as client:
        completion = client.completions.create(**COMPLETION)
    assert completion.usage is not None
    assert completion.usage.completion_tokens <= 2


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": 5}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [767_000]}, "prompt"),
        ({"prompt": [768]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": "x" * 100_000}, "prompt"),
        ({"prompt": "\ud800"}, None),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": HUGE}, "max_tokens"),
        ({"temperature": HUGE * 1.0}, "temperature"),
        ({"temperature": [1]}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -7}, "top_k"),
        ({"n": HUGE}, "n"),
        ({"n": 0}, "n"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 1000}, "stop"),
        ({"seed": HUGE}, "seed"),
        ({"logprobs": 1000}, "logprobs"),
        ({"logit_bias": {"5": HUGE}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"stop_token_ids": [999_999]}, "stop_token_ids"),
        ({"stream": "perhaps"}, "stream"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"model": None}, None),
    ],
)
async def test_a_bad_parameter_is_named_and_costs_nobody_else_anything(
    server: Server, changes: dict[str, object], param: str | None
) -> None:
    import json

    body = json.dumps(COMPLETION | changes).replace("1e+30", "1" + "0" * 30).encode("utf-8", "surrogatepass")
    status, answer = await post(server, "/v1/completions", body)
    if changes == {"model": None}:
        assert status == 200  # the one model that there is
    else:
        assert status == 400, answer
        error = json.loads(answer)["error"]
        assert error["message"]
        if param is not None:
            assert (error["param"] or "").split(".")[0] == param, error
    is_served(server)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\x00", 400),
        (b'{"model": "tiny", "prompt": "\xff"}', 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400),
        (b'{"model": "tiny", "prompt": "' + b"x" * 10_000_000 + b'"}', 413),
        (b'{"model": "tiny", "prompt": NaN}', 400),
        (b'{"model": "tiny", "prompt": "a\\u0000b", "max_tokens": 2}', 200),
        (b'{"model": "tiny", "prompt": "a", "max_tokens": 2, "no_such_field": {"deep": [1]}}', 200),
    ],
)
async def test_a_bad_body_is_refused_whole(server: Server, body: bytes, status: int) -> None:
    found, answer = await post(server, "/v1/completions", body)
    assert found == status, answer[:300]
    is_served(server)


text_requests = st.builds(
    tokenizer_pb2.TextRequest,
    text=st.text(max_size=5),
    token_ids=st.binary(max_size=9),
    chat=st.builds(
        tokenizer_pb2.ChatPrompt,
        messages_json=st.text(max_size=20)
        | st.sampled_from(["[]", "[1]", '[{"role": 5}]', '[{"role": "user"}]']),
        tools_json=st.sampled_from(["", "{}", "[1]", "nope"]),
        template_kwargs_json=st.sampled_from(["", "[]", '{"messages": []}']),
    ),
    n=st.integers(0, 2**32 - 1),
    stop=st.lists(st.text(max_size=3), max_size=3),
    sampling=st.builds(
        types_pb2.SamplingParams,
        temperature=st.floats(width=32),
        top_p=st.floats(width=32),
        top_k=st.integers(-(2**31), 2**31 - 1),
        max_tokens=st.integers(0, 3) | st.just(2**32 - 1),
        stop_token_ids=st.binary(max_size=6),
        logit_bias_token_ids=st.binary(max_size=6),
        logprobs=st.integers(0, 2**32 - 1),
    ),
    timeout_s=st.floats(),
)
token_requests = st.builds(
    scheduler_pb2.TokenRequest,
    prompt_token_ids=st.binary(max_size=9) | st.just(pack_int32([5, 6])),
    n=st.integers(0, 3) | st.just(2**32 - 1),
    sampling=st.builds(
        types_pb2.SamplingParams,
        temperature=st.floats(width=32),
        min_p=st.floats(width=32),
        repetition_penalty=st.floats(width=32),
        max_tokens=st.integers(0, 3),
        min_tokens=st.integers(0, 2**32 - 1),
    ),
    timeout_s=st.floats(),
)
FEW = types_pb2.SamplingParams(temperature=0.0, max_tokens=3)
CLEAR = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.DEADLINE_EXCEEDED,  # a timeout of next to nothing is a fair wish
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # and refused at once where the speed is known
}
profile = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


async def outcome(call) -> grpc.StatusCode:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code() if error.details() else grpc.StatusCode.UNKNOWN
    return grpc.StatusCode.OK


@profile
@given(request=text_requests)
@example(tokenizer_pb2.TextRequest(text="x", n=1, sampling=FEW, timeout_s=1e-6))
@example(tokenizer_pb2.TextRequest(text="x", n=1, sampling=FEW))
def test_any_text_request_by_grpc_is_served_or_refused_clearly(
    server: Server, request: tokenizer_pb2.TextRequest
) -> None:
    import asyncio

    async def ask() -> grpc.StatusCode:
        async with open_channel(server.address("tokenizer")) as channel:
            return await outcome(tokenizer_pb2_grpc.TokenizerStub(channel).Generate(request))

    if request.n > 8 and request.n <= 64:
        request.n = 8
    assert asyncio.run(ask()) in CLEAR | {grpc.StatusCode.OK}


@profile
@given(request=token_requests)
@example(scheduler_pb2.TokenRequest(prompt_token_ids=pack_int32([5, 6]), n=1, sampling=FEW, timeout_s=1e-6))
@example(scheduler_pb2.TokenRequest(prompt_token_ids=pack_int32([5, 6]), n=1, sampling=FEW))
def test_any_token_request_by_grpc_is_served_or_refused_clearly(
    server: Server, request: scheduler_pb2.TokenRequest
) -> None:
    import asyncio

    async def ask() -> grpc.StatusCode:
        async with open_channel(server.address("scheduler")) as channel:
            return await outcome(scheduler_pb2_grpc.SchedulerStub(channel).Generate(request))

    assert asyncio.run(ask()) in CLEAR | {grpc.StatusCode.OK}


def test_after_all_that_the_server_serves_and_holds_nothing(server: Server) -> None:
    import asyncio

    is_served(server)

    async def status() -> scheduler_pb2.SchedulerStatus:
        async with open_channel(server.address("scheduler")) as channel:
            stub = scheduler_pb2_grpc.SchedulerStub(channel)
            while True:
                found = await stub.GetStatus(types_pb2.GetStatusRequest())
                if found.replicas[0].rows_used == 0:
                    return found

    assert asyncio.run(status()).replicas[0].blocks_used == 0
