"""`GET /health/live` and `/health/ready`, the only routes that never ask for a key."""

import orjson
from fastapi import APIRouter, Response

from gateway.pool import TokenizerPool


def health_routes(pool: TokenizerPool) -> APIRouter:
    """The routes of health."""
    router = APIRouter(tags=["Health"])

    @router.get("/health/live")
    async def live() -> Response:
        """200 while the process can answer at all."""
        return Response(b'{"status":"live"}', media_type="application/json")

    # Users of vLLM have `/health` in their probes, where it means that requests are served.
    @router.get("/health", include_in_schema=False)
    @router.get("/health/ready")
    async def ready() -> Response:
        """200 while a request would be served, maybe after a wait; 503 with the reason and the load progress if not."""
        state = pool.readiness()
        if state.ready:
            return Response(b'{"status":"ready"}', media_type="application/json")
        body = {"status": "not ready", "reason": state.reason, "progress": round(state.progress, 4)}
        return Response(orjson.dumps(body), 503, {"Retry-After": "1"}, "application/json")

    return router
