"""The scheduler's metrics: vLLM's names where it has one, observed once a step."""

from functools import cache
from typing import TypeVar

from prometheus_client import Counter, Gauge, Histogram

from quire.metrics import LATENCY_BUCKETS, REGISTRY, REQUEST_BUCKETS, STEP_BUCKETS, TOKEN_BUCKETS
from scheduler_svc.batch_histogram import BatchHistogram
from scheduler_svc.core.live_requests import Ending
from scheduler_svc.core.scheduler import Scheduler
from scheduler_svc.core.step_tokens import StepStats

_LABELS = ["model_name", "engine"]
M = TypeVar("M", Counter, Gauge, Histogram)


def _gauge(name: str, documentation: str) -> Gauge:
    return Gauge(name, documentation, _LABELS, registry=REGISTRY)


def _counter(name: str, documentation: str) -> Counter:
    return Counter(name, documentation, _LABELS, registry=REGISTRY)


def _histogram(name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
    return Histogram(name, documentation, _LABELS, buckets=buckets, registry=REGISTRY)


_running = _gauge("vllm:num_requests_running", "Sequences that hold a row")
_waiting = _gauge("vllm:num_requests_waiting", "Sequences that wait for a row")
_kv_usage = _gauge("vllm:kv_cache_usage_perc", "Share of KV blocks that sequences hold, 0 to 1")
_queries = _counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache")
_hits = _counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache")
_preemptions = _counter("vllm:num_preemptions", "Sequences that lost their row and were computed again")
_prompt_tokens = _counter("vllm:prompt_tokens", "Prompt tokens of sequences that ended")
_generation_tokens = _counter("vllm:generation_tokens", "Tokens generated")
_iteration_tokens = _histogram("vllm:iteration_tokens_total", "Tokens computed per step", TOKEN_BUCKETS)
_inter_token = BatchHistogram(
    "vllm:inter_token_latency_seconds",
    "Seconds between tokens of a sequence, as the scheduler sees them",
    _LABELS,
    LATENCY_BUCKETS,
    REGISTRY,
)
_queue_time = _histogram("vllm:request_queue_time_seconds", "Seconds before a row was got", REQUEST_BUCKETS)
_prefill_time = _histogram(
    "vllm:request_prefill_time_seconds", "Seconds from row to first token", REQUEST_BUCKETS
)
_decode_time = _histogram(
    "vllm:request_decode_time_seconds", "Seconds from first token to end", REQUEST_BUCKETS
)
_inference_time = _histogram(
    "vllm:request_inference_time_seconds", "Seconds from row to end", REQUEST_BUCKETS
)
_success = Counter(
    "vllm:request_success",
    "Sequences that ended, by reason",
    [*_LABELS, "finished_reason"],
    registry=REGISTRY,
)
_rejections = Counter(
    "vllm:admission_rejections", "Requests refused, by error code", [*_LABELS, "reason"], registry=REGISTRY
)
_cache_config = Gauge(
    "vllm:cache_config_info",
    "Block size and number of blocks, as labels",
    [*_LABELS, "block_size", "num_gpu_blocks"],
    registry=REGISTRY,
)
_step_seconds = Histogram(
    "quire_scheduler_step_seconds",
    "Seconds that workers spent on a command",
    buckets=STEP_BUCKETS,
    registry=REGISTRY,
)
_step_cpu_seconds = Histogram(
    "quire_scheduler_step_cpu_seconds",
    "CPU seconds of the scheduler for a result and the command that follows",
    buckets=STEP_BUCKETS,
    registry=REGISTRY,
)
_recomputed = Counter(
    "quire_scheduler_recomputed_tokens",
    "Positions computed again after preemption or loss",
    registry=REGISTRY,
)
_queue_seconds = Histogram(
    "quire_scheduler_queue_seconds",
    "Seconds before a row was got, by what was waited for last",
    ["cause"],
    buckets=REQUEST_BUCKETS,
    registry=REGISTRY,
)
_ttft_error = Histogram(
    "quire_scheduler_ttft_prediction_error_seconds",
    "Seconds by which the time to first token differed from what was predicted at admission",
    buckets=LATENCY_BUCKETS,
    registry=REGISTRY,
)
index_entries = Counter(
    "quire_scheduler_index_entries", "Entries written to the prefix index", registry=REGISTRY
)
index_failures = Counter(
    "quire_scheduler_index_failures", "Writes to the prefix index that Redis did not take", registry=REGISTRY
)
index_adopted = Counter(
    "quire_scheduler_index_adopted_blocks", "Blocks taken over with a worker's cache", registry=REGISTRY
)
index_refused = Counter(
    "quire_scheduler_index_refused_blocks",
    "Index entries not believed: the worker was started again, or their block was given away",
    registry=REGISTRY,
)
redirects = Counter("quire_scheduler_redirects", "Requests sent on to another scheduler", registry=REGISTRY)
ledger_lost = Counter(
    "quire_scheduler_ledger_lost_records", "Ledger records given up while Redis was away", registry=REGISTRY
)
ledger_unsettled = Gauge(
    "quire_scheduler_ledger_unsettled_records",
    "Ledger records that Redis does not have yet",
    registry=REGISTRY,
)
_workers = Gauge("quire_scheduler_workers_connected", "Workers whose stream is open", registry=REGISTRY)
sessions = Gauge("quire_scheduler_sessions", "Tokenizer sessions connected", registry=REGISTRY)

_ENGINE = "0"
_model = ""


@cache
def _series(metric: M, *more: str) -> M:
    """The one of the model that is served, and of `more` labels: to find it costs several times what counting does."""
    return metric.labels(_model, _ENGINE, *more)


@cache
def _queue_seconds_for(cause: str) -> Histogram:
    return _queue_seconds.labels(cause)


def describe(scheduler: Scheduler) -> None:
    """A worker has described itself: the model's name labels everything from now on."""
    global _model
    if scheduler.abilities is not None:
        _model = scheduler.abilities.model.name
        _series.cache_clear()
        _inter_token.label_values = (_model, _ENGINE)
        num_blocks = sum(replica.pool.num_blocks for replica in scheduler.replicas.values())
        # One series: what was true before is not.
        _cache_config.clear()
        _cache_config.labels(_model, _ENGINE, scheduler.abilities.block_size, num_blocks).set(1)


def observe_step(stats: StepStats, cpu_s: float) -> None:
    """A command has retired."""
    _step_seconds.observe(stats.step_s)
    _step_cpu_seconds.observe(cpu_s)
    _series(_iteration_tokens).observe(stats.prefill_tokens + stats.generated_tokens)
    _series(_generation_tokens).inc(stats.generated_tokens)
    if len(stats.intervals_s):
        _inter_token.observe(stats.intervals_s, stats.interval_tokens)


def observe_state(scheduler: Scheduler) -> None:
    """After each turn: what runs, what waits, what is held."""
    replicas = list(scheduler.replicas.values())
    taken = sum(replica.rows.max_rows - replica.rows.num_free for replica in replicas)
    blocks = sum(replica.pool.num_blocks for replica in replicas)
    free = sum(replica.pool.num_free for replica in replicas)
    _series(_running).set(taken)
    _series(_waiting).set(len(scheduler.queue))
    _series(_kv_usage).set((blocks - free) / blocks if blocks else 0.0)
    _workers.set(sum(replica.connected for replica in replicas))


def observe_end(ending: Ending, reason: str) -> None:
    """A sequence has ended."""
    usage = ending.usage
    _series(_success, reason).inc()
    _series(_prompt_tokens).inc(usage.prompt_tokens)
    _series(_queries).inc(usage.prompt_tokens)
    _series(_hits).inc(usage.cached_tokens)
    _series(_preemptions).inc(usage.preemptions)
    _recomputed.inc(usage.recomputed_tokens)
    _series(_queue_time).observe(usage.queue_s)
    _queue_seconds_for(ending.sequence.queue_cause.value).observe(usage.queue_s)
    predicted_s = ending.sequence.request.predicted_ttft_s
    if predicted_s and usage.completion_tokens:
        _ttft_error.observe(abs(usage.queue_s + usage.prefill_s - predicted_s))
    _series(_prefill_time).observe(usage.prefill_s)
    _series(_decode_time).observe(usage.decode_s)
    _series(_inference_time).observe(usage.prefill_s + usage.decode_s)


def count_rejection(reason: str) -> None:
    """A request was refused."""
    _series(_rejections, reason).inc()
