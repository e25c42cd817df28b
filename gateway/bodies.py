"""Request bodies: bounded while they are read, then parsed strictly."""

import asyncio
import contextlib
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import from_json
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import BODY_TIMEOUT, INVALID, NOT_JSON, TOO_LARGE, ApiError
from quire.errors import Cancelled

M = TypeVar("M", bound=BaseModel)

_DISCARD_LIMIT_S = 5.0
_DISCARD_FACTOR = 4


class BodyLimitMiddleware:
    """Refuses bodies longer than `max_bytes`, announced or not, and those that take more than `timeout_s` to arrive.

    A client that is still sending does not see an answer whose connection is closed under it, so some of what
    is too much is read and thrown away first.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            if "expect" not in headers:  # a client that asks before it sends needs no more than the answer
                await self._discard(receive)
            await self._too_large().response()(scope, receive, send)
            return
        num_bytes = 0
        is_complete = False
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s

        async def receive_bounded() -> Message:
            nonlocal num_bytes, is_complete
            try:
                # After the body comes only the client's leaving, for which there is no time.
                async with asyncio.timeout_at(None if is_complete else deadline_s):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            is_complete = not message.get("more_body")
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                if message.get("more_body"):
                    await self._discard(receive)
                raise self._too_large()
            return message

        await self._app(scope, receive_bounded, send)

    async def _discard(self, receive: Receive) -> None:
        num_bytes = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARD_LIMIT_S):
                while num_bytes < _DISCARD_FACTOR * self._max_bytes:
                    message = await receive()
                    num_bytes += len(message.get("body", b""))
                    if not message.get("more_body"):
                        return

    def _too_slow(self) -> ApiError:
        message = f"the request body did not arrive within {self._timeout_s:g} s"
        return ApiError(BODY_TIMEOUT, message, headers={"Connection": "close"})

    def _too_large(self) -> ApiError:
        # What may be left of the body is not worth reading, so the connection is of no more use.
        headers = {"Connection": "close"}
        return ApiError(TOO_LARGE, f"the request body is over {self._max_bytes} bytes", headers=headers)


async def read_json(request: Request, model: type[M]) -> M:
    """The request's body as `model`.

    Raises ApiError for what is not JSON (NaN, invalid UTF-8, lone surrogates and more than 200 levels of
    nesting are not) and pydantic's ValidationError for what is not a `model`.
    """
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise ApiError(NOT_JSON, f"Content-Type must be application/json, not {content_type[:64]!r}")
    try:
        data = await request.body()
    except ClientDisconnect:
        raise Cancelled("the client left before its request was complete") from None
    try:
        document: Any = from_json(data, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise ApiError(INVALID, f"the request body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise ApiError(INVALID, "the request body must be a JSON object")
    return model.model_validate(document)
