"""`GET /metrics`: this process's metrics, and those of the services it was told of."""

from collections.abc import Sequence

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gateway.exposition import add_up, fetch_all, merge
from quire.metrics import REGISTRY


def metrics_routes(upstreams: Sequence[str], peers: Sequence[str]) -> APIRouter:
    """The route of metrics; `upstreams`, and `peers` that are gateways too, are http://host:port/metrics addresses."""
    router = APIRouter(tags=["Metrics"])

    @router.get("/metrics")
    async def get_metrics() -> Response:
        """Prometheus metrics."""
        found = await fetch_all([*peers, *upstreams])
        own = [generate_latest(REGISTRY).decode()]
        gateways = own + [text for url in peers if (text := found.get(url))]
        text = merge([add_up(gateways), *(text for url in upstreams if (text := found.get(url)))])
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return router
