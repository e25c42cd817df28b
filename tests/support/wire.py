"""TCP connections between two processes that can be made slow, or dead without anybody being told."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_CHUNK_BYTES = 2**16


class Wire:
    """Listens on a free port and passes on what comes to `target` (host:port), and the answers back."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._passes = asyncio.Event()
        self._passes.set()
        self._links: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        """By how much each answer comes later."""
        self.address = ""
        self.num_asked = 0
        """Pieces of questions that went through."""

    def cut(self) -> None:
        """From now on nothing passes, neither way, not even an end; every connection stays open."""
        self._passes.clear()

    def mend(self) -> None:
        """Go on after `cut`."""
        self._passes.set()

    def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until one of its ends closes it."""
        link = asyncio.create_task(self._carry(reader, writer))
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
            late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
            ways = [
                asyncio.create_task(self._ask(reader, far_writer)),
                asyncio.create_task(self._hear(far_reader, late)),
                asyncio.create_task(self._answer(late, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
                far_writer.close()
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            await self._passes.wait()
            writer.write(data)
            await writer.drain()
            self.num_asked += 1
        await self._passes.wait()

    async def _hear(self, reader: asyncio.StreamReader, late: "asyncio.Queue[tuple[float, bytes]]") -> None:
        """Read on while earlier answers are on their way: what is slow is the way, not the server."""
        loop = asyncio.get_running_loop()
        while data := await reader.read(_CHUNK_BYTES):
            late.put_nowait((loop.time() + self.delay_s, data))
        await self._passes.wait()

    async def _answer(self, late: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await late.get()
            if (wait_s := due - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            await self._passes.wait()
            writer.write(data)
            await writer.drain()

    async def close(self) -> None:
        """End every connection."""
        for link in list(self._links):
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)


@asynccontextmanager
async def running_wire(target: str) -> AsyncIterator[Wire]:
    """A wire to `target` for the length of the block."""
    wire = Wire(target)
    server = await asyncio.start_server(wire.connect, "127.0.0.1", 0)
    wire.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        server.close()
        await wire.close()
