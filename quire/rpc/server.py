"""A gRPC server with health, reflection, keepalive and clear errors: the same for every service."""

from collections.abc import Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from quire.errors import QuireError
from quire.rpc import security
from quire.rpc.channel import KEEPALIVE_TIME_S, KEEPALIVE_TIMEOUT_S, MAX_MESSAGE_BYTES
from quire.rpc.interceptors import ErrorInterceptor
from quire.rpc.security import Security
from quire.rpc.token import TokenInterceptor

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Well below the interval at which clients ask, or a few milliseconds of jitter would make three of their pings
    # too many, and end the connection.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIME_S * 1000 // 5),
    ("grpc.so_reuseport", 0),
)


class ListenError(QuireError):
    """The address to listen on cannot be taken."""


def _status(serving: bool) -> "health_pb2.HealthCheckResponse.ServingStatus.ValueType":
    return health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING


class RpcServer:
    """Listens on `host:port` (port 0 picks one) or `unix:/path`; servicers join `.server` before `start`.

    It asks of its clients what `identity` says: by default, what is in force in this process.
    """

    def __init__(self, listen: str, identity: Security | None = None) -> None:
        self.listen = listen
        self.address = listen
        self._identity = identity or security.in_force()
        interceptors: list[grpc.aio.ServerInterceptor] = [ErrorInterceptor()]
        if self._identity.token:
            interceptors.insert(0, TokenInterceptor(self._identity.token))
        self.server = grpc.aio.server(interceptors=interceptors, options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        self._services: Sequence[str] = ()

    async def start(self, services: Sequence[str]) -> None:
        """Listen, with health (NOT_SERVING at first) and reflection for the full names in `services`.

        Raises ListenError, with one line that names the address, when it is taken or malformed.
        """
        self._services = tuple(services)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self.server)
        await self.set_serving(False)
        try:
            port = self._add_port()
        except RuntimeError:
            raise ListenError(f"cannot listen on {self.listen}: the address is taken or not valid") from None
        if not self.listen.startswith("unix:"):
            host = self.listen.rpartition(":")[0]
            self.address = f"{host}:{port}"
        await self.server.start()

    def _add_port(self) -> int:
        if self._identity.has_tls:
            return self.server.add_secure_port(self.listen, self._identity.server_credentials())
        return self.server.add_insecure_port(self.listen)

    async def set_serving(self, serving: bool, *, able: bool | None = None) -> None:
        """Set grpc.health.v1: every service's name to `serving`, and "", the process itself, to `able`.

        `able` says whether this process could do its part, whatever its peers do. None: it needs no peer to serve.
        """
        for name in self._services:
            await self._health.set(name, _status(serving))
        await self._health.set("", _status(serving if able is None else able))

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give running ones `grace_s` seconds, then end them."""
        await self._health.enter_graceful_shutdown()
        await self.server.stop(grace_s)
