"""The ASGI application: routes, and the middleware around them."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

import quire
from gateway import openapi
from gateway.auth import ApiKeys, AuthMiddleware
from gateway.bodies import BodyLimitMiddleware
from gateway.calls import CallMiddleware
from gateway.errors import ApiError, describe
from gateway.in_progress import RequestLimitMiddleware
from gateway.routes.chat import chat_routes
from gateway.routes.completions import completion_routes
from gateway.routes.health import health_routes
from gateway.routes.metrics import metrics_routes
from gateway.routes.models import model_routes
from gateway.routes.tokens import token_routes
from gateway.serving import Serving
from quire.errors import QuireError


def create_app(
    serving: Serving,
    api_keys: ApiKeys,
    *,
    max_requests: int,
    max_body_bytes: int,
    body_timeout_s: float,
    metrics_public: bool,
    metrics_upstreams: Sequence[str],
    metrics_peers: Sequence[str],
) -> FastAPI:
    """The gateway's application.

    Middleware is plain ASGI: Starlette's `BaseHTTPMiddleware` costs four times as much per streamed chunk.
    FastAPI's own telemetry is off, because `gateway.calls` makes one span a request. There is no /docs: a
    browser cannot send the key that every path asks for. /openapi.json is there.
    """
    routers = (
        chat_routes(serving),
        completion_routes(serving),
        model_routes(serving.pool),
        token_routes(serving),
        health_routes(serving.pool),
        metrics_routes(metrics_upstreams, metrics_peers),
    )
    app = FastAPI(
        title="Quire",
        version=quire.__version__,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        routes=[route for router in routers for route in router.routes],
        exception_handlers={
            QuireError: _answer_error,
            ApiError: _answer_error,
            ValidationError: _answer_error,
            HTTPException: _answer_error,
        },
    )
    # The last one added is the outermost.
    app.add_middleware(BodyLimitMiddleware, max_bytes=max_body_bytes, timeout_s=body_timeout_s)
    app.add_middleware(RequestLimitMiddleware, max_requests=max_requests)
    app.add_middleware(AuthMiddleware, api_keys=api_keys, metrics_public=metrics_public)
    app.add_middleware(CallMiddleware, leaving=lambda: serving.pool.leaving)
    app.openapi = partial(openapi.document, app)  # type: ignore[method-assign]
    return app


async def _answer_error(_request: Request, error: Any) -> Response:
    return describe(error).response()
