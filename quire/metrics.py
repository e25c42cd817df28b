"""Prometheus metrics: one registry a process, and the buckets that services share.

prometheus_client rather than OpenTelemetry, because names such as `vllm:num_requests_running`, which existing
dashboards and autoscalers read, are refused by OpenTelemetry's instruments.
"""

from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import CollectorRegistry, start_http_server

REGISTRY = CollectorRegistry()

# vLLM's time-to-first-token and inter-token buckets, with the finer steps that a fast server needs.
LATENCY_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip
TOKEN_BUCKETS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
STEP_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.012, 0.016, 0.025, 0.05, 0.1, 0.25,
    1.0, 4.0,
)  # fmt: skip


def serve_metrics(listen: str) -> None:
    """Serve the registry at http://host:port/metrics, from a thread. Raises OSError if the port is taken."""
    host, _, port = listen.rpartition(":")
    server, _ = start_http_server(int(port), addr=host or "127.0.0.1", registry=REGISTRY)
    negotiate = server.get_app()

    def as_text(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # In OpenMetrics, for which Prometheus 2 asks, `vllm:` becomes `vllm_` (prometheus/client_python#1177).
        environ.pop("HTTP_ACCEPT", None)
        return negotiate(environ, start_response) if negotiate else ()

    server.set_app(as_text)
