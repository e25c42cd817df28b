"""The gateway's own metrics, under vLLM's names where it has one."""

from prometheus_client import Counter, Gauge, Histogram

from quire.metrics import LATENCY_BUCKETS, REGISTRY, REQUEST_BUCKETS, TOKEN_BUCKETS

_MODEL = ("model_name",)
_COUNTS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)

time_to_first_token = Histogram(
    "vllm:time_to_first_token_seconds",
    "Time from the arrival of a request to its first token.",
    _MODEL,
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
e2e_request_latency = Histogram(
    "vllm:e2e_request_latency_seconds",
    "Time from the arrival of a request to the end of its answer.",
    _MODEL,
    buckets=REQUEST_BUCKETS,
    registry=REGISTRY,
)
time_per_output_token = Histogram(
    "vllm:request_time_per_output_token_seconds",
    "Mean time per output token after the first, one observation a request.",
    _MODEL,
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
prompt_tokens = Histogram(
    "vllm:request_prompt_tokens",
    "Tokens of a request's prompt.",
    _MODEL,
    buckets=TOKEN_BUCKETS,
    registry=REGISTRY,
)
generation_tokens = Histogram(
    "vllm:request_generation_tokens",
    "Tokens generated for a request.",
    _MODEL,
    buckets=TOKEN_BUCKETS,
    registry=REGISTRY,
)
params_n = Histogram(
    "vllm:request_params_n", "The n parameter of a request.", _MODEL, buckets=_COUNTS, registry=REGISTRY
)
params_max_tokens = Histogram(
    "vllm:request_params_max_tokens",
    "The max_tokens parameter of a request that set one.",
    _MODEL,
    buckets=TOKEN_BUCKETS,
    registry=REGISTRY,
)
http_requests = Counter(
    "quire_gateway_http_requests",
    "HTTP calls answered; status 499 is a client that left.",
    ("route", "method", "status"),
    registry=REGISTRY,
)
http_request_seconds = Histogram(
    "quire_gateway_http_request_seconds",
    "Time from the headers of an HTTP call to the end of its answer.",
    ("route",),
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
open_streams = Gauge("quire_gateway_open_streams", "Event streams being sent.", registry=REGISTRY)
stream_deltas = Counter(
    "quire_gateway_stream_deltas", "Deltas received for event streams.", registry=REGISTRY
)
stream_writes = Counter(
    "quire_gateway_stream_writes",
    "Writes to event streams; deltas per write were coalesced.",
    registry=REGISTRY,
)
requests_ended_early = Counter(
    "quire_gateway_requests_ended_early",
    "Requests ended before their answer was complete.",
    ("reason",),
    registry=REGISTRY,
)
# There from the start: Prometheus sees no increase in what begins with 1.
for _reason in ("deadline", "disconnect", "session_lost", "slow_client"):
    requests_ended_early.labels(_reason)
requests_resumed = Counter(
    "quire_gateway_requests_resumed",
    "Requests submitted after their tokenizer service was lost, or once there was one again.",
    registry=REGISTRY,
)
sessions_connected = Gauge(
    "quire_gateway_sessions_connected", "Sessions with tokenizer services that are up.", registry=REGISTRY
)
connections_refused = Counter(
    "quire_gateway_connections_refused",
    "Connections closed before a request was complete, by the limit that they passed.",
    ("limit",),
    registry=REGISTRY,
)
metrics_upstream_up = Gauge(
    "quire_gateway_metrics_upstream_up",
    "Whether the metrics of another service could be fetched for /metrics.",
    ("url",),
    registry=REGISTRY,
)
