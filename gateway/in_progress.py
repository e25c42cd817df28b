"""How many requests this process works on at once: more are refused before anything of their bodies is read."""

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.errors import OVERLOADED, ApiError


class RequestLimitMiddleware:
    """Refuses POSTs with 429 while `max_requests` are being answered; the rest is small and always served."""

    def __init__(self, app: ASGIApp, max_requests: int) -> None:
        self._app = app
        self._max_requests = max_requests
        self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._num_requests >= self._max_requests:
            # The connection goes, too, as its body may still be on the way.
            headers = {"Retry-After": "1", "Connection": "close"}
            message = f"the server is answering {self._max_requests} requests; try again"
            await ApiError(OVERLOADED, message, headers=headers).response()(scope, receive, send)
            return
        self._num_requests += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_requests -= 1
