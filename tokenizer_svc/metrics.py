"""The tokenizer service's metrics."""

from prometheus_client import Counter, Gauge, Histogram

from quire.metrics import LATENCY_BUCKETS, REGISTRY

requests = Counter("quire_tokenizer_requests", "Requests taken", registry=REGISTRY)
requests_refused = Counter(
    "quire_tokenizer_requests_refused", "Requests refused here, by error code", ["code"], registry=REGISTRY
)
requests_resumed = Counter(
    "quire_tokenizer_requests_resumed",
    "Requests submitted after their scheduler was lost, or once there was one again",
    registry=REGISTRY,
)
requests_running = Gauge("quire_tokenizer_requests_running", "Requests in progress", registry=REGISTRY)
schedulers_ready = Gauge(
    "quire_tokenizer_schedulers_ready", "Schedulers that would take a request", registry=REGISTRY
)
sessions = Gauge("quire_tokenizer_sessions", "Gateway sessions connected", registry=REGISTRY)
tokens_in = Counter("quire_tokenizer_prompt_tokens", "Prompt tokens encoded", registry=REGISTRY)
tokens_out = Counter("quire_tokenizer_generated_tokens", "Generated tokens detokenized", registry=REGISTRY)
encode_seconds = Histogram(
    "quire_tokenizer_encode_seconds",
    "Seconds from a request's arrival to its tokens",
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
