"""`GET /metrics`: this process's metrics, and those of the services it was told of."""

from collections.abc import Sequence

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gateway.exposition import fetch_all, merge
from quire.metrics import REGISTRY


def metrics_routes(upstreams: Sequence[str]) -> APIRouter:
    """The route of metrics; `upstreams` are http://host:port/metrics addresses."""
    router = APIRouter(tags=["Metrics"])

    @router.get("/metrics")
    async def get_metrics() -> Response:
        """Prometheus metrics."""
        others = await fetch_all(upstreams)
        text = merge([generate_latest(REGISTRY).decode(), *others])
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return router
