"""For each alert, series on which it fires, and the same ones in health: promtool's own unit tests are made of them."""

from typing import Any, NamedTuple

INTERVAL = "15s"
MINUTES = 15


class AlertCase(NamedTuple):
    """Series by selector, in promtool's notation: `start+step x times` per 15 s."""

    alert: str
    sick: dict[str, str]
    healthy: dict[str, str]


_WORKERS = "quire_scheduler_workers_connected"
_SCHEDULERS = "quire_tokenizer_schedulers_ready"
_SESSIONS = 'quire_gateway_sessions_connected{instance="g1:9100"}'
_CALLS = "quire_gateway_http_requests_total"
_LOST = 'quire_gateway_requests_ended_early_total{reason="session_lost"}'
_LEFT = 'quire_gateway_requests_ended_early_total{reason="disconnect"}'
_FIRST_TOKEN = 'vllm:time_to_first_token_seconds_bucket{model_name="m"'
_TOKEN = 'vllm:inter_token_latency_seconds_bucket{model_name="m"'
_REFUSED = "vllm:admission_rejections_total"
_KV = 'vllm:kv_cache_usage_perc{instance="s1:9100"}'
_AGAIN, _GENERATED = "quire_scheduler_recomputed_tokens_total", "vllm:generation_tokens_total"
_INDEX = "quire_scheduler_index_failures_total"
_LEDGER = 'quire_scheduler_ledger_lost_records_total{instance="s1:9100"}'
_TARGET = 'up{job="quire", service="gateway", instance="g1:9100"}'


def _buckets(selector: str, *, slow: bool, bounds: tuple[str, ...]) -> dict[str, str]:
    """Ten observations an interval, all under the first bound or all above every finite one."""
    steps = ["0+0x60" if slow and bound != "+Inf" else "0+10x60" for bound in bounds]
    return {f'{selector}, le="{bound}"}}': step for bound, step in zip(bounds, steps, strict=True)}


CASES = (
    AlertCase("QuireNoWorker", {_WORKERS: "0x60"}, {_WORKERS: "1x60"}),
    AlertCase("QuireNoSchedulerReady", {_SCHEDULERS: "0x60"}, {_SCHEDULERS: "1x60"}),
    AlertCase("QuireGatewayWithoutTokenizer", {_SESSIONS: "0x60"}, {_SESSIONS: "2x60"}),
    AlertCase(
        "QuireTargetDown",
        {_TARGET: "0x60"},
        {_TARGET: "1x60"},
    ),
    AlertCase(
        "QuireWorkerWithoutScheduler",
        {'up{service="gpu_worker", instance="a"}': "1x60", 'up{service="gpu_worker", instance="b"}': "1x60"}
        | {_WORKERS: "1x60"},
        {'up{service="gpu_worker", instance="a"}': "1x60", _WORKERS: "1x60"},
    ),
    AlertCase(
        "QuireServerErrors",
        {f'{_CALLS}{{status="200"}}': "0+10x60", f'{_CALLS}{{status="503"}}': "0+10x60"},
        {f'{_CALLS}{{status="200"}}': "0+1000x60", f'{_CALLS}{{status="503"}}': "0+10x60"},
    ),
    AlertCase("QuireStreamsLost", {_LOST: "0+1x60"}, {_LOST: "0x60", _LEFT: "0+9x60"}),
    AlertCase(
        "QuireStepsFail",
        {'quire_worker_row_errors_total{instance="w1:9100"}': "0+1x60"},
        {'quire_worker_row_errors_total{instance="w1:9100"}': "7x60"},
    ),
    AlertCase(
        "QuireFirstTokenSlow",
        _buckets(_FIRST_TOKEN, slow=True, bounds=("5", "7.5", "+Inf")),
        _buckets(_FIRST_TOKEN, slow=False, bounds=("5", "7.5", "+Inf")),
    ),
    AlertCase(
        "QuireTokensSlow",
        _buckets(_TOKEN, slow=True, bounds=("0.5", "0.75", "+Inf")),
        _buckets(_TOKEN, slow=False, bounds=("0.5", "0.75", "+Inf")),
    ),
    AlertCase(
        "QuireQueueGrows",
        {"vllm:num_requests_waiting": "9x60"},
        {"vllm:num_requests_waiting": "9x40 0x3 9x17"},
    ),
    AlertCase(
        "QuireRefusals",
        {f'{_REFUSED}{{reason="ERROR_CODE_RESOURCE_EXHAUSTED"}}': "0+15x60"},
        {f'{_REFUSED}{{reason="ERROR_CODE_INVALID_ARGUMENT"}}': "0+15x60"},
    ),
    AlertCase("QuireKvCacheFull", {_KV: "0.99x60"}, {_KV: "0.9x60"}),
    AlertCase(
        "QuirePreemptions",
        {_AGAIN: "0+50x60", _GENERATED: "0+100x60"},
        {_AGAIN: "0+5x60", _GENERATED: "0+100x60"},
    ),
    AlertCase("QuireRedisAway", {_INDEX: "0+1x60"}, {_INDEX: "3x60"}),
    AlertCase("QuireUsageLost", {_LEDGER: "0+1x60"}, {_LEDGER: "0x60"}),
)


def unit_tests(case: AlertCase) -> list[dict[str, Any]]:
    """Two of promtool's tests: in sickness the alert fires after a while, in health it does not."""
    firing = f'count(ALERTS{{alertname="{case.alert}", alertstate="firing"}}) or vector(0)'
    return [
        {
            "interval": INTERVAL,
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": firing,
                    "eval_time": f"{MINUTES}m",
                    "exp_samples": [{"labels": "{}", "value": count}],
                }
            ],
        }
        for series, count in ((case.sick, 1), (case.healthy, 0))
    ]
