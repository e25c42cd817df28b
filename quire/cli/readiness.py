"""Waits until a locally started server answers, and says how far it is."""

import asyncio
from collections.abc import Callable

from quire.local import worker_progress
from quire.rpc.channel import open_channel
from quire.v1 import worker_pb2_grpc

_POLL_S = 0.1


class Readiness:
    """Watches the worker's load progress until the gateway says that it is ready."""

    def __init__(self, worker: str, say: Callable[[str], None]) -> None:
        self._worker = worker
        self._say = say

    async def wait(self, host: str, port: int, gateways: int) -> None:
        """Return once GET /health/ready answers 200, whichever of the gateways is asked."""
        channel = open_channel(self._worker)
        stub: worker_pb2_grpc.WorkerAsyncStub = worker_pb2_grpc.WorkerStub(channel)
        try:
            while not await self._all_ready(host, port, gateways):
                self._say(await worker_progress(stub))
                await asyncio.sleep(_POLL_S)
            self._say(await worker_progress(stub))
        finally:
            await channel.close()

    async def _all_ready(self, host: str, port: int, gateways: int) -> bool:
        # The kernel picks one by the connection; so many tries miss one of them once in thousands of starts.
        tries = 1 if gateways == 1 else 10 * gateways
        for _ in range(tries):
            if not await _is_ready(host, port):
                return False
        return True


async def _is_ready(host: str, port: int) -> bool:
    """One GET by hand: an HTTP client library would be the launcher's only use of one."""
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        reader, writer = await asyncio.open_connection(target, port)
    except OSError:
        return False
    try:
        writer.write(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        status_line = await asyncio.wait_for(reader.readline(), 2.0)
        return status_line.split(b" ")[1:2] == [b"200"]
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
