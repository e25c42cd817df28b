"""The worker's metrics."""

from prometheus_client import Counter, Gauge, Histogram

from quire.metrics import REGISTRY, STEP_BUCKETS

step_seconds = Histogram(
    "quire_worker_step_seconds",
    "Seconds that the device worked on a command",
    buckets=STEP_BUCKETS,
    registry=REGISTRY,
)
commands = Counter("quire_worker_commands", "Commands executed", registry=REGISTRY)
tokens_computed = Counter("quire_worker_tokens_computed", "Token positions computed", registry=REGISTRY)
row_errors = Counter("quire_worker_row_errors", "Rows that failed alone", registry=REGISTRY)
protocol_errors = Counter("quire_worker_protocol_errors", "Streams ended by a bad command", registry=REGISTRY)
rows_used = Gauge("quire_worker_rows_used", "Rows in use", registry=REGISTRY)
load_seconds = Gauge("quire_worker_load_seconds", "Seconds from start to ready", registry=REGISTRY)
kv_cache_bytes = Gauge("quire_worker_kv_cache_bytes", "Size of the KV cache", registry=REGISTRY)
weights_bytes = Gauge("quire_worker_weights_bytes", "Size of the weights", registry=REGISTRY)
device_memory_allocated_bytes = Gauge(
    "quire_worker_device_memory_allocated_bytes",
    "GPU memory that tensors take: weights, KV cache, rows, buffers; 0 on a CPU",
    registry=REGISTRY,
)
device_memory_reserved_bytes = Gauge(
    "quire_worker_device_memory_reserved_bytes",
    "GPU memory that the worker's allocator holds; what kernels and libraries take comes on top; 0 on a CPU",
    registry=REGISTRY,
)
