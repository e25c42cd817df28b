"""The life of a service process: starting → ready → draining → stopped. Every `__main__` calls `run`."""

import asyncio
import gc
import signal
import sys
from collections.abc import Callable, Iterable
from math import inf
from typing import NoReturn, Protocol, TypeVar

import structlog
import uvloop

from quire import telemetry
from quire.errors import InvalidRequest, QuireError
from quire.logging import configure_logging
from quire.metrics import serve_metrics
from quire.parent import follow_parent
from quire.rpc import security
from quire.rpc.identity import identity_of
from quire.settings import ServiceSettings, SettingsError, load_settings

log = structlog.get_logger()

_STOP_LIMIT_S = 5.0


class Service(Protocol):
    """What a process runs. Each method is called once, in this order."""

    async def start(self) -> None:
        """Return once listening; readiness may come later. A QuireError ends the process with its message."""

    async def drain(self) -> None:
        """Stop admitting; return when what runs is finished. Cancelled after the grace period."""

    async def stop(self) -> None:
        """Close everything, promptly."""


class Shutdown:
    """Asks the process to end; the first call counts."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._immediate = asyncio.Event()
        self.failure: str | None = None
        self.grace_s: float | None = None
        """Seconds that running requests get, where whoever asked said so."""

    def drain(self, timeout_s: float) -> None:
        """As `Drain` asks: leave with exit code 0 after at most so many seconds; 0: the service's own grace period.

        Raises InvalidRequest for a time that is none. Asking again changes nothing.
        """
        if not 0 <= timeout_s < inf:
            raise InvalidRequest("timeout_s must be 0 or more", param="timeout_s")
        if not self._event.is_set():
            self.grace_s = timeout_s or None
            self.request("Drain was called")

    def request(self, reason: str) -> None:
        """Drain and leave with exit code 0. A second request leaves without draining further."""
        if self._event.is_set():
            self._immediate.set()
        else:
            log.info("shutting down", reason=reason)
        self._event.set()

    def fail(self, message: str) -> None:
        """Leave at once with one clear line and exit code 1."""
        if not self._event.is_set():
            self.failure = message
        self._event.set()

    async def wait(self) -> None:
        """Return when the process should end."""
        await self._event.wait()

    async def wait_impatient(self) -> None:
        """Return when a second request came: whoever asked does not want to wait for the drain."""
        await self._immediate.wait()


def freeze_heap() -> None:
    """What exists now lives until the end: the garbage collector need not walk it on every run."""
    gc.collect()
    gc.freeze()


async def end_tasks(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel, and return when all have ended; what they raise is dropped.

    One cancellation is not enough: `asyncio.wait_for` of Python 3.11, in redis-py's sending, can lose it.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=0.05)


S = TypeVar("S", bound=ServiceSettings)


def run(name: str, settings_type: type[S], build: Callable[[S, Shutdown], Service]) -> NoReturn:
    """Run a service until SIGTERM, SIGINT or its own request; exit with 0, or 1 after one clear line."""
    follow_parent()
    try:
        settings = load_settings(settings_type, name, sys.argv[1:])
    except SettingsError as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    configure_logging(name, level=settings.log_level, format=settings.log_format)
    telemetry.configure(name, settings.otlp_endpoint)
    try:
        security.put_in_force(identity_of(name, settings))
        if settings.metrics_listen:
            serve_metrics(settings.metrics_listen)
        failure = uvloop.run(_live(name, build, settings))
    except (QuireError, OSError) as error:
        failure = str(error)
    finally:
        telemetry.shutdown()
    raise SystemExit(0 if failure is None else f"{name}: {failure}")


async def _live(name: str, build: Callable[[S, Shutdown], Service], settings: S) -> str | None:
    """Returns why the service failed, None if it did not."""
    shutdown = Shutdown()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, shutdown.request, signal.Signals(number).name)
    service = build(settings, shutdown)
    try:
        await service.start()
        freeze_heap()
        log.info("listening", address=settings.listen)
        await shutdown.wait()
        if shutdown.failure is None:
            grace_s = settings.grace_s if shutdown.grace_s is None else shutdown.grace_s
            await _drain(service, grace_s, shutdown)
    finally:
        try:
            async with asyncio.timeout(_STOP_LIMIT_S):
                await service.stop()
        except TimeoutError:
            log.warning("gave up waiting for a clean stop", service=name)
    return shutdown.failure


async def _drain(service: Service, grace_s: float, shutdown: Shutdown) -> None:
    draining = asyncio.create_task(service.drain(), name="drain")
    impatient = asyncio.create_task(shutdown.wait_impatient(), name="second signal")
    await asyncio.wait({draining, impatient}, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        log.warning("what still runs is given up", grace_s=grace_s)
    impatient.cancel()
    draining.cancel()
    results = await asyncio.gather(draining, impatient, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]
