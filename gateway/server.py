"""The gateway as a service: one socket, one uvicorn, the sessions behind it."""

import asyncio
import contextlib
import os
import resource
import socket
from functools import partial
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI

from gateway.app import create_app
from gateway.auth import ApiKeys
from gateway.connections import BoundedConnection, ConnectionLimits
from gateway.limits import Limits
from gateway.pool import Admission, Readiness, TokenizerPool
from gateway.serving import Serving
from gateway.settings import GatewaySettings
from quire import keys
from quire.rpc.server import ListenError
from quire.service import Shutdown

log = structlog.get_logger()

_BACKLOG = 2048
# A client that takes nothing for so long is gone, whatever its kernel says.
_STUCK_CLIENT_MS = 60_000

_SESSIONS = "sessions"


class GatewayService:
    """Serves HTTP from `start` to `stop`."""

    def __init__(self, settings: GatewaySettings, shutdown: Shutdown) -> None:
        self._settings = settings
        self._shutdown = shutdown
        self.pool = TokenizerPool(settings.tokenizers)
        self._tasks: list[asyncio.Task[None]] = []
        self._server: _Server | None = None
        self.address = settings.listen
        self.app: FastAPI | None = None

    async def start(self) -> None:
        """Listen. Raises ListenError, KeysFileError."""
        settings = self._settings
        _raise_file_limit()
        # Before anything else is done: a taken port is the likeliest mistake.
        listener = _bind(settings.listen, shared=settings.shared_listen)
        if listener.family != socket.AF_UNIX:
            self.address = "{}:{}".format(*listener.getsockname()[:2])
        serving = Serving(
            pool=self.pool,
            limits=Limits(
                max_n=settings.max_n,
                max_prompts=settings.max_prompts,
                max_messages=settings.max_messages,
                max_stop=settings.max_stop,
                max_logprobs=settings.max_logprobs,
                max_logit_bias=settings.max_logit_bias,
                max_request_s=settings.max_request_s,
            ),
            max_buffered_bytes=settings.max_buffered_bytes,
        )
        self.app = create_app(
            serving,
            self._api_keys(),
            max_requests=settings.max_requests,
            max_body_bytes=settings.max_body_bytes,
            body_timeout_s=settings.body_timeout_s,
            metrics_public=settings.metrics_public,
            metrics_upstreams=settings.metrics_upstreams,
            metrics_peers=settings.metrics_peers,
        )
        connection_limits = ConnectionLimits(
            max_connections=settings.max_connections,
            max_header_bytes=settings.max_header_bytes,
            header_timeout_s=settings.header_timeout_s,
        )
        self._server = _Server(
            uvicorn.Config(
                self.app,
                # uvicorn calls it, whatever it is, with its own arguments by name.
                http=partial(BoundedConnection, connection_limits),  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=settings.keep_alive_s,
                timeout_graceful_shutdown=1,
            )
        )
        self._spawn(_SESSIONS, self.pool.run())
        self._spawn("http server", self._server.serve(sockets=[listener]))
        await self._server.listening.wait()

    async def drain(self) -> None:
        """Turn readiness off, a little later refuse new requests; return when those admitted before are answered.

        From the first moment on every answer closes its connection: clients come back elsewhere.
        """
        self.pool.admission = Admission.LEAVING
        await asyncio.sleep(self._settings.leave_delay_s)
        self.pool.admission = Admission.CLOSED
        if self._server is not None:
            await self._server.wait_answered()

    async def stop(self) -> None:
        """End what still runs, each with an error that says so, and close everything."""
        self.pool.admission = Admission.CLOSED
        self.pool.fail_all("the server is shutting down; try again")
        if self._server is not None:
            self._server.should_exit = True
        # The last one first: until the server has ended, its calls still cancel through the sessions.
        for task in reversed(self._tasks):
            if task.get_name() == _SESSIONS:
                task.cancel()
            await asyncio.wait([task])

    def readiness(self) -> Readiness:
        """Whether a request would be served: now, or after a wait for a service that has just gone."""
        return self.pool.readiness()

    def _api_keys(self) -> ApiKeys:
        """The keys; where there are none at all, the first one, shown on standard output this once."""
        settings = self._settings
        path = Path(settings.keys_file).expanduser() if settings.keys_file else keys.default_keys_file()
        if settings.api_key is None:
            minted = keys.mint_first(path)
            if minted:
                print(f"API key, shown only this once: {minted}", flush=True)
                log.info("minted the first API key", keys_file=str(path))
        return ApiKeys(path, settings.api_key)

    def _spawn(self, name: str, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed", task=task.get_name(), exc_info=error)
            self._shutdown.fail(f"{task.get_name()} failed: {error}")


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: `quire.service` decides when to leave."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def wait_answered(self) -> None:
        """Return when the calls that are now being answered have been; later ones are not waited for."""
        if tasks := set(self.server_state.tasks):
            await asyncio.wait(tasks)


def _raise_file_limit() -> None:
    """As many files as the system lets us open: its default of 1,024 is fewer than the connections we take."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _bind(listen: str, *, shared: bool) -> socket.socket:
    """A listening socket on `host:port` or `unix:/path`, maybe beside others there. Raises ListenError."""
    try:
        if listen.startswith("unix:"):
            return _bind_unix(listen.removeprefix("unix:"))
        host, _, port = listen.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # asyncio turns Nagle's algorithm off only where the protocol is named.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _STUCK_CLIENT_MS)
            listener.bind((host, int(port)))
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        return listener
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ListenError(f"cannot listen on {listen}: {reason}") from None


def _bind_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A socket file outlives its process; one that nobody answers on is free to take.
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            listener.connect(path)
            raise OSError(f"{path} is in use")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        listener.close()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
