"""Outside gRPC clients: the documented example runs, and reflection says what there is."""

import asyncio
import sys

import grpc
import pytest

from quire.v1 import types_pb2, worker_pb2, worker_pb2_grpc
from tests.support.server import REPOSITORY, Server

pytestmark = pytest.mark.e2e


async def test_the_documented_client_streams_from_tokenizer_and_scheduler(server: Server) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "docs/examples/grpc_client.py",
        *("--tokenizer", server.address("tokenizer"), "--scheduler", server.address("scheduler")),
        *("--max-tokens", "6"),
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY)},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    *_, reason, token_ids, _ = out.decode("utf-8").split("\n")
    assert reason == "[FINISH_REASON_LENGTH, 6 tokens]"
    assert sum(len(part.strip(" []").split(",")) for part in token_ids.split("] [")) == 6


@pytest.mark.parametrize("service", ["tokenizer", "scheduler", "worker"])
def test_reflection_lists_the_service(server: Server, service: str) -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(server.address(service), options=options) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        name = f"quire.v1.{service.capitalize()}"
        assert {name, "grpc.health.v1.Health"} <= set(database.get_services())
        assert database.FindFileContainingSymbol(name).package == "quire.v1"


async def test_a_stranger_s_bad_commands_cost_the_worker_nothing(server: Server, client) -> None:
    """The scheduler loses its lease to the stranger, takes it back, and the next request is served."""
    async with grpc.aio.insecure_channel(
        server.address("worker"), options=[("grpc.default_authority", "localhost")]
    ) as channel:
        worker = worker_pb2_grpc.WorkerStub(channel)

        async def commands():
            yield worker_pb2.StepCommand(step_id=1, prefill_rows=b"\x01", decode_steps=4_000_000_000)

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in worker.Run(commands(), metadata=(("quire-lease-epoch", "not a number"),)):
                pass
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert (await worker.GetStatus(types_pb2.GetStatusRequest())).state == types_pb2.SERVICE_STATE_READY
    assert client.completions.create(model="tiny", prompt="one", max_tokens=2).usage.completion_tokens == 2
