"""A worker process that speaks the step protocol and answers at once, with deterministic tokens.

    python -m benchmarks.instant_worker --listen 127.0.0.1:7400 --max-rows 1024 --vocab-size 32000

It takes the model's place wherever only the control plane is measured or tested. It ends the stream with
INVALID_ARGUMENT on any command that the protocol does not allow, so it is a checker of schedulers too.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import structlog
from pydantic import Field

from benchmarks.instant_rows import InstantRows, ProtocolViolation
from gpu_worker.block_tags import BlockTags
from quire.packing import pack_int32, pack_uint64, unpack_int32, unpack_uint32
from quire.redis_client import open_redis
from quire.registry import Registration
from quire.rpc.server import RpcServer
from quire.service import Shutdown, end_tasks, run
from quire.settings import ServiceSettings
from quire.v1 import types_pb2, worker_pb2, worker_pb2_grpc

LEASE_KEY = "quire-lease-epoch"

log = structlog.get_logger()


class InstantWorkerSettings(ServiceSettings):
    """What the worker pretends to be."""

    listen: str = Field("127.0.0.1:7400", description="address to serve on: host:port, or unix:/path")
    worker_id: str = Field("instant-0", description="name of the worker")
    model_name: str = Field("instant", description="name of the model")
    model_source: str = Field("", description="directory or hub id that the model is said to be loaded from")
    model_revision: str = Field("instant-1", description="revision of the model")
    vocab_size: int = Field(32000, ge=2, description="token ids are below this")
    eos_token_id: int = Field(-1, description="token id that ends sequences; below 0: none does")
    max_model_len: int = Field(8192, ge=2, description="tokens of prompt and output together")
    max_rows: int = Field(256, ge=1, description="rows")
    num_blocks: int = Field(16384, ge=1, description="KV blocks")
    block_size: int = Field(16, ge=1, description="tokens per block")
    max_step_tokens: int = Field(8192, ge=1, description="token positions per step")
    max_decode_steps: int = Field(8, ge=1, description="decode steps per command")
    max_logprobs: int = Field(20, ge=0, description="likeliest tokens per token")
    redis_url: str = Field("", description="redis://host:port/db where workers register; empty: nowhere")
    step_us: float = Field(0.0, ge=0, description="microseconds that each step takes")
    token_us: float = Field(0.0, ge=0, description="microseconds that each prompt position adds to its step")

    def description(self) -> worker_pb2.WorkerDescription:
        """The description that `Describe` answers with, under a new epoch."""
        model = types_pb2.ModelDescription(
            name=self.model_name,
            source=self.model_source,
            revision=self.model_revision,
            architecture="Instant",
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            eos_token_ids=pack_int32([self.eos_token_id] if self.eos_token_id >= 0 else []),
            dtype="none",
        )
        return worker_pb2.WorkerDescription(
            worker_id=self.worker_id,
            worker_epoch=int.from_bytes(os.urandom(8), "little") | 1,
            model=model,
            block_size=self.block_size,
            num_blocks=self.num_blocks,
            max_rows=self.max_rows,
            max_step_tokens=self.max_step_tokens,
            max_decode_steps=self.max_decode_steps,
            max_logprobs=self.max_logprobs,
            device="cpu",
        )


class InstantWorker(worker_pb2_grpc.WorkerServicer):
    """The Worker service, and the process around it."""

    def __init__(self, settings: InstantWorkerSettings, shutdown: Shutdown | None = None) -> None:
        self.rpc = RpcServer(settings.listen)
        worker_pb2_grpc.add_WorkerServicer_to_server(self, self.rpc.server)
        self.rows = InstantRows(settings.description())
        self.violations: list[str] = []
        self._step_s = settings.step_us * 1e-6
        self._token_s = settings.token_us * 1e-6
        self._tags = BlockTags(settings.num_blocks, settings.block_size)
        self._redis = open_redis(settings.redis_url) if settings.redis_url else None
        self._registration: asyncio.Task[None] | None = None
        self._draining = False
        self._is_empty = asyncio.Event()
        self._shutdown = shutdown
        self._lease_epoch = 0
        self._stream: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        """Listen; there is nothing to load."""
        await self.rpc.start([worker_pb2.DESCRIPTOR.services_by_name["Worker"].full_name])
        await self.rpc.set_serving(True)
        if self._redis is not None:
            self._registration = asyncio.create_task(self._register().run(), name="registration")

    def _register(self) -> Registration:
        assert self._redis is not None
        description = self.rows.description

        def describe() -> dict[str, str | int]:
            return {
                "address": self.rpc.address,
                "epoch": description.worker_epoch,
                "state": "draining" if self._draining else "ready",
                "driven": self._stream is not None,
                "lease_epoch": self._lease_epoch,
            }

        return Registration(self._redis, "worker", description.worker_id, describe)

    async def drain(self) -> None:
        """Say so, and wait until the scheduler has moved the sequences that run here."""
        self._draining = True
        self._note_rows()
        await self._is_empty.wait()

    async def stop(self) -> None:
        """Close the server and its stream."""
        if self._registration is not None:
            await end_tasks([self._registration])
        if self._redis is not None:
            await self._register().withdraw()
            await self._redis.aclose()
        await self.rpc.stop(0)

    async def Describe(  # noqa: N802
        self, request: worker_pb2.DescribeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.WorkerDescription:
        return self.rows.description

    async def DescribeBlocks(  # noqa: N802
        self, request: worker_pb2.DescribeBlocksRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.DescribeBlocksResponse:
        blocks = unpack_int32(request.block_ids)
        if len(blocks) == 0:
            blocks = np.arange(self.rows.description.num_blocks, dtype=np.int32)
        return worker_pb2.DescribeBlocksResponse(
            worker_epoch=self.rows.description.worker_epoch,
            lease_epochs=pack_uint64(self._tags.lease_epochs[blocks]),
            step_ids=pack_uint64(self._tags.step_ids[blocks]),
            checksums=pack_uint64(self.rows.checksums(blocks)) if request.with_checksums else b"",
        )

    async def GetStatus(  # noqa: N802
        self, request: types_pb2.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> worker_pb2.WorkerStatus:
        return worker_pb2.WorkerStatus(
            state=types_pb2.SERVICE_STATE_READY,
            worker_id=self.rows.description.worker_id,
            worker_epoch=self.rows.description.worker_epoch,
            load_progress=1.0,
            rows_used=int(self.rows.used.sum()),
            blocks_used=int((self.rows.block_refs > 0).sum()),
            last_step_id=self.rows.last_step_id,
            steps_executed=self.rows.steps_executed,
            tokens_computed=self.rows.tokens_computed,
            lease_epoch=self._lease_epoch,
        )

    async def Drain(  # noqa: N802
        self, request: types_pb2.DrainRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> types_pb2.DrainResponse:
        if self._shutdown is not None:
            self._shutdown.drain(request.timeout_s)
        return types_pb2.DrainResponse()

    async def Run(  # noqa: N802
        self,
        request_iterator: AsyncIterator[worker_pb2.StepCommand],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[worker_pb2.StepResult]:
        metadata = dict(context.invocation_metadata() or ())
        lease_epoch = int(metadata.get(LEASE_KEY, 0))
        if lease_epoch < self._lease_epoch:
            await context.abort(grpc.StatusCode.ABORTED, f"leased under epoch {self._lease_epoch}")
        earlier, self._stream = self._stream, asyncio.current_task()
        self._lease_epoch = lease_epoch
        if earlier is not None:
            earlier.cancel()
            # It must be off the rows before they are cleared.
            await asyncio.wait({earlier})
        self.rows.clear()
        # Tells the scheduler that the lease is its own.
        await context.send_initial_metadata(())
        try:
            async for command in request_iterator:
                if command.lease_epoch != self._lease_epoch:
                    await context.abort(grpc.StatusCode.ABORTED, f"leased under epoch {self._lease_epoch}")
                yield await self._execute(command)
        except ProtocolViolation as error:
            self.violations.append(str(error))
            log.error("protocol violation", step_id=command.step_id, problem=str(error))
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except asyncio.CancelledError:
            if self._stream is not asyncio.current_task():
                with contextlib.suppress(asyncio.CancelledError):
                    await context.abort(grpc.StatusCode.ABORTED, "another scheduler has taken the lease")
            raise
        finally:
            if self._stream is asyncio.current_task():
                self._stream = None
                self.rows.clear()
                self._note_rows()

    def _note_rows(self) -> None:
        if self.rows.used.any():
            self._is_empty.clear()
        else:
            self._is_empty.set()

    async def _execute(self, command: worker_pb2.StepCommand) -> worker_pb2.StepResult:
        started = time.perf_counter()
        self._tags.note(command)
        result = self.rows.execute(command)
        result.draining = self._draining
        self._note_rows()
        model_s = self._step_s * max(1, command.decode_steps)
        model_s += self._token_s * int(unpack_uint32(command.prefill_num_tokens).sum())
        if model_s:
            await asyncio.sleep(model_s)
        result.step_s = time.perf_counter() - started
        return result


def main() -> None:
    """Run until told to stop."""
    run("instant_worker", InstantWorkerSettings, InstantWorker)


if __name__ == "__main__":
    main()
