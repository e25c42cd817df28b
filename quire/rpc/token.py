"""The shared token: sent as `authorization: Bearer` with every call, and compared in constant time."""

import hashlib
import hmac
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import grpc

_KEY = "authorization"
_SCHEME = "Bearer "
# Kubernetes and load balancers ask for health without metadata, and learn no more than up or down.
_OPEN_METHODS = frozenset({"/grpc.health.v1.Health/Check"})


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without the token with UNAUTHENTICATED, before any of the request is read."""

    def __init__(self, token: str) -> None:
        self._digest = _digest(_SCHEME + token)

    async def intercept_service(
        self, continuation: Any, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Let the call through, or answer it with the refusal."""
        if handler_call_details.method in _OPEN_METHODS or self._admits(handler_call_details):
            return await continuation(handler_call_details)
        # Of the four kinds only this one is started before the client has sent anything; it fits the others too.
        return grpc.stream_stream_rpc_method_handler(_refuse)

    def _admits(self, details: grpc.HandlerCallDetails) -> bool:
        shown = [value for key, value in details.invocation_metadata or () if key == _KEY]
        # Digests have one length, whatever is sent.
        return len(shown) == 1 and hmac.compare_digest(_digest(shown[0]), self._digest)


class TokenChannel(grpc.aio.Channel):
    """A channel whose every call carries the token.

    grpc's client interceptors could do it too, at the price of a queue and a task for each message of a stream.
    """

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel = channel
        self._metadata = ((_KEY, _SCHEME + token),)

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._channel.__aexit__(kind, error, trace)

    async def close(self, grace: float | None = None) -> None:
        """As `Channel.close`."""
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """As `Channel.get_state`."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """As `Channel.wait_for_state_change`."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """As `Channel.channel_ready`."""
        await self._channel.channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As `Channel.unary_unary`."""
        return self._carrying(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As `Channel.unary_stream`."""
        return self._carrying(self._channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        """As `Channel.stream_unary`."""
        return self._carrying(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        """As `Channel.stream_stream`."""
        return self._carrying(self._channel.stream_stream(*args, **kwargs))

    def _carrying(self, start: Callable[..., Any]) -> Callable[..., Any]:
        def start_with_token(*args: Any, metadata: Any = None, **kwargs: Any) -> Any:
            return start(*args, metadata=(*(metadata or ()), *self._metadata), **kwargs)

        return start_with_token


async def _refuse(_requests: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED, "calls need the token that the services share (--rpc-token)"
    )


def _digest(value: str | bytes) -> bytes:
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).digest()
