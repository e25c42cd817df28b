"""Turns exceptions of RPC methods into gRPC statuses, so that no servicer does it again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import structlog

from quire.errors import Internal, QuireError

log = structlog.get_logger()


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """QuireError becomes its status with details; anything else becomes INTERNAL and a log line."""

    async def intercept_service(
        self, continuation: Any, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Wrap our own methods; streaming ones are async generators, unary ones coroutines."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        # Health and reflection come with behaviours of their own.
        if handler is None or not method.startswith("/quire."):
            return handler
        codec = (handler.request_deserializer, handler.response_serializer)
        if not handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(_guard_unary(handler.unary_unary, method), *codec)
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(_guard_stream(handler.stream_stream, method), *codec)
        return grpc.unary_stream_rpc_method_handler(_guard_stream(handler.unary_stream, method), *codec)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str) -> None:
    if not isinstance(error, QuireError):
        log.error("rpc failed", method=method, exc_info=error)
        error = Internal(f"{method} failed: an internal error, which was logged")
    await context.abort(error.status, error.message, error.trailing_metadata())


def _guard_unary(behaviour: Any, method: str) -> Any:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await behaviour(request, context)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:
            await _abort(context, error, method)

    return guarded


def _guard_stream(behaviour: Any, method: str) -> Any:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            # aclosing: the method's own clean-up runs now, not when the garbage collector gets to it.
            async with aclosing(behaviour(request, context)) as responses:
                async for response in responses:
                    yield response
        except (asyncio.CancelledError, grpc.aio.AbortError, GeneratorExit):
            raise
        except Exception as error:
            await _abort(context, error, method)

    return guarded
