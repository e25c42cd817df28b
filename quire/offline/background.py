"""The services and their session on an event loop of their own, in a thread, for callers who may have none or one."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from quire.local import OFFLINE_SCHEDULER, LocalServices
from quire.offline.text_session import TextSession

T = TypeVar("T")


class Background:
    """Runs coroutines beside services that live from `start` to `stop`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # The services die with the thread that started them (the launcher asks Linux for that): it lives until `stop`.
        self._thread = threading.Thread(target=self._loop.run_forever, name="quire", daemon=True)
        self._thread.start()
        self._living: asyncio.Task[None] | None = None
        self._services: LocalServices | None = None

    def start(
        self,
        model: str,
        *,
        worker: Mapping[str, object],
        scheduler: Mapping[str, object],
        say: Callable[[str], None],
    ) -> TextSession:
        """Start the services; return the session when they are ready. Raises LaunchError."""

        async def begin() -> TextSession:
            self._services = LocalServices(
                model,
                worker=worker,
                scheduler={**OFFLINE_SCHEDULER, **scheduler},
                with_tokenizer=True,
                say=say,
            )
            ready: asyncio.Future[TextSession] = self._loop.create_future()
            self._living = asyncio.create_task(_live(self._services, ready), name="services and session")
            first: set[asyncio.Future[Any]] = {self._living, ready}
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if self._living.done():
                self._living.result()
            return ready.result()

        return asyncio.run_coroutine_threadsafe(begin(), self._loop).result()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine on the loop. It fails with LaunchError if the services cannot be kept running."""
        assert self._services is not None
        return asyncio.run_coroutine_threadsafe(self._services.guard(work), self._loop)

    def stop(self) -> None:
        """Stop everything and wait for it; called once."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        if self._living is not None:
            self._living.cancel()
            await asyncio.gather(self._living, return_exceptions=True)
        # Requests of other threads: they fail, as their services are gone, and that takes them a turn of the loop.
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)


async def _live(services: LocalServices, ready: "asyncio.Future[TextSession]") -> None:
    async with services:
        session = TextSession(services.tokenizer_address)
        running = asyncio.create_task(session.run(), name="session")
        try:
            await services.guard(session.ready())
            ready.set_result(session)
            await asyncio.Event().wait()  # until `stop` cancels
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
