"""Writes the Grafana dashboard from the panels listed here; `--check` fails if the committed one is stale.

The JSON is what Grafana reads, forty lines a panel; this is what people read and change.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARD = Path(__file__).parents[1] / "deploy" / "observability" / "grafana" / "quire.json"
_DATASOURCE = {"type": "prometheus", "uid": "${DS_PROMETHEUS}"}
_MODEL = 'model_name=~"$model"'
_RATE = "[$__rate_interval]"
_COLUMNS = 24


@dataclass(frozen=True)
class Panel:
    """A graph, or with `is_stat` one figure. `unit` is Grafana's name of it, `queries` are PromQL by legend."""

    title: str
    unit: str
    queries: dict[str, str]
    description: str = ""
    is_stat: bool = False
    is_stacked: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows of Grafana's grid."""
        return (3, 4) if self.is_stat else (8, 8)


def _quantile(share: float, metric: str, by: str = "", where: str = _MODEL) -> str:
    labels = f"le, {by}" if by else "le"
    selected = f"{metric}_bucket{{{where}}}" if where else f"{metric}_bucket"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({selected}{_RATE})))"


def _quantiles(metric: str, where: str = _MODEL) -> dict[str, str]:
    return {f"p{round(100 * share)}": _quantile(share, metric, where=where) for share in (0.5, 0.95, 0.99)}


def _rate(metric: str, by: str = "", where: str = _MODEL) -> str:
    selected = f"{metric}{{{where}}}" if where else metric
    return f"sum by ({by}) (rate({selected}{_RATE}))" if by else f"sum(rate({selected}{_RATE}))"


def _stat(title: str, unit: str, query: str, description: str = "") -> Panel:
    return Panel(title, unit, {"": query}, description, is_stat=True)


OVERVIEW = (
    _stat("Requests", "reqps", _rate("vllm:request_success_total"), "Sequences that end, a second."),
    _stat("Tokens generated", "suffix: tok/s", _rate("vllm:generation_tokens_total")),
    _stat("First token, p95", "s", _quantile(0.95, "vllm:time_to_first_token_seconds")),
    _stat("Between tokens, p99", "s", _quantile(0.99, "vllm:inter_token_latency_seconds")),
    _stat("Running", "short", f"sum(vllm:num_requests_running{{{_MODEL}}})"),
    _stat("Waiting", "short", f"sum(vllm:num_requests_waiting{{{_MODEL}}})"),
    _stat("Workers", "short", "sum(quire_scheduler_workers_connected)", "Driven by a scheduler."),
    _stat(
        "HTTP 5xx",
        "percentunit",
        f'(sum(rate(quire_gateway_http_requests_total{{status=~"5.."}}{_RATE})) or vector(0))'
        f" / sum(rate(quire_gateway_http_requests_total{_RATE}))",
    ),
)

TRAFFIC = (
    Panel(
        "HTTP calls by route",
        "reqps",
        {"{{route}}": _rate("quire_gateway_http_requests_total", "route", 'route!~"/health.*|/metrics"')},
        is_stacked=True,
    ),
    Panel(
        "Sequences",
        "short",
        {
            "running": f"sum(vllm:num_requests_running{{{_MODEL}}})",
            "waiting": f"sum(vllm:num_requests_waiting{{{_MODEL}}})",
            "event streams open": "sum(quire_gateway_open_streams)",
        },
    ),
    Panel(
        "Tokens",
        "suffix: tok/s",
        {
            "generated": _rate("vllm:generation_tokens_total"),
            "of prompts": _rate("vllm:prompt_tokens_total"),
            "of prompts, from the cache": _rate("vllm:prefix_cache_hits_total"),
        },
    ),
    Panel(
        "Ends by reason",
        "reqps",
        {"{{finished_reason}}": _rate("vllm:request_success_total", "finished_reason")},
        is_stacked=True,
    ),
    Panel("Prompt length", "suffix: tok", _quantiles("vllm:request_prompt_tokens")),
    Panel("Answer length", "suffix: tok", _quantiles("vllm:request_generation_tokens")),
)

LATENCY = (
    Panel(
        "Time to first token", "s", _quantiles("vllm:time_to_first_token_seconds"), "As the gateway saw it."
    ),
    Panel(
        "Between tokens",
        "s",
        _quantiles("vllm:inter_token_latency_seconds"),
        "As the scheduler saw it: what a slow client does not read in time is not in it.",
    ),
    Panel("Whole request", "s", _quantiles("vllm:e2e_request_latency_seconds")),
    Panel(
        "Wait for a row, p95 by what was waited for",
        "s",
        {"{{cause}}": _quantile(0.95, "quire_scheduler_queue_seconds", "cause", "")},
    ),
    Panel(
        "Where the time of a request goes, mean",
        "s",
        {
            phase: f"{_rate(f'vllm:request_{phase}_time_seconds_sum')}"
            f" / {_rate(f'vllm:request_{phase}_time_seconds_count')}"
            for phase in ("queue", "prefill", "decode")
        },
        is_stacked=True,
    ),
    Panel(
        "Error of the predicted time to first token",
        "s",
        _quantiles("quire_scheduler_ttft_prediction_error_seconds", where=""),
        "What admission by deadline relies on.",
    ),
)

CACHE = (
    Panel(
        "KV blocks in use",
        "percentunit",
        {"{{instance}}": f"vllm:kv_cache_usage_perc{{{_MODEL}}}"},
        "Of all workers of a scheduler. Cached blocks that no sequence holds count as free.",
    ),
    Panel(
        "Share of prompt tokens found in the cache",
        "percentunit",
        {"hits": f"{_rate('vllm:prefix_cache_hits_total')} / {_rate('vllm:prefix_cache_queries_total')}"},
    ),
    Panel(
        "Computed again",
        "suffix: tok/s",
        {"positions": _rate("quire_scheduler_recomputed_tokens_total", where="")},
        "After preemption, and after the loss of a worker.",
    ),
    Panel("Preemptions", "ops", {"preemptions": _rate("vllm:num_preemptions_total")}),
    Panel(
        "Prefix index in Redis",
        "ops",
        {
            "entries written": _rate("quire_scheduler_index_entries_total", where=""),
            "writes refused": _rate("quire_scheduler_index_failures_total", where=""),
        },
    ),
    Panel(
        "Blocks of workers taken over",
        "ops",
        {
            "adopted": _rate("quire_scheduler_index_adopted_blocks_total", where=""),
            "not believed": _rate("quire_scheduler_index_refused_blocks_total", where=""),
        },
    ),
)

REPLICAS = (
    Panel("Containers that answer", "short", {"{{service}}": 'sum by (service) (up{job="quire"})'}),
    Panel(
        "Workers by scheduler",
        "short",
        {"{{instance}}": "sum by (instance) (quire_scheduler_workers_connected)"},
        is_stacked=True,
    ),
    Panel("Rows by worker", "short", {"{{instance}}": "quire_worker_rows_used"}, is_stacked=True),
    Panel(
        "Positions computed by worker",
        "suffix: tok/s",
        {"{{instance}}": _rate("quire_worker_tokens_computed_total", "instance", "")},
        is_stacked=True,
    ),
    Panel(
        "Device time of a command, p50 by worker",
        "s",
        {"{{instance}}": _quantile(0.5, "quire_worker_step_seconds", "instance", "")},
    ),
    Panel(
        "Scheduler's CPU time of a command",
        "s",
        _quantiles("quire_scheduler_step_cpu_seconds", where=""),
    ),
    Panel(
        "Requests by tokenizer service",
        "short",
        {"{{instance}}": "quire_tokenizer_requests_running"},
        is_stacked=True,
    ),
    Panel("GPU memory held", "bytes", {"{{instance}}": "quire_worker_device_memory_reserved_bytes"}),
    Panel("Last start of a worker", "s", {"{{instance}}": "quire_worker_load_seconds"}),
)

ERRORS = (
    Panel(
        "HTTP errors by status",
        "reqps",
        {"{{status}}": _rate("quire_gateway_http_requests_total", "status", 'status=~"4..|5.."')},
        "499 is a client that left.",
        is_stacked=True,
    ),
    Panel(
        "Refused",
        "reqps",
        {
            "scheduler: {{reason}}": _rate("vllm:admission_rejections_total", "reason"),
            "tokenizer: {{code}}": _rate("quire_tokenizer_requests_refused_total", "code", ""),
        },
        is_stacked=True,
    ),
    Panel(
        "Ended early",
        "reqps",
        {"{{reason}}": _rate("quire_gateway_requests_ended_early_total", "reason", "")},
        is_stacked=True,
    ),
    Panel(
        "Moved",
        "reqps",
        {
            "gone on after a scheduler was lost": _rate("quire_tokenizer_requests_resumed_total", where=""),
            "sent on to another scheduler": _rate("quire_scheduler_redirects_total", where=""),
        },
    ),
    Panel(
        "Faults of workers",
        "ops",
        {
            "rows": _rate("quire_worker_row_errors_total", where=""),
            "commands": _rate("quire_worker_protocol_errors_total", where=""),
        },
    ),
    Panel(
        "Usage records given up",
        "short",
        {"records": "sum(increase(quire_scheduler_ledger_lost_records_total[$__range]))"},
    ),
)

ROWS = {
    "": OVERVIEW,
    "Traffic": TRAFFIC,
    "Latency": LATENCY,
    "KV and cache": CACHE,
    "Replicas": REPLICAS,
    "Errors": ERRORS,
}


def dashboard() -> dict[str, Any]:
    """What Grafana provisions."""
    return {
        "uid": "quire",
        "title": "Quire",
        "tags": ["quire", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "graphTooltip": 1,
        "templating": {"list": _variables()},
        "panels": [{"id": number, **panel} for number, panel in enumerate(_panels(), start=1)],
    }


def _variables() -> list[dict[str, Any]]:
    models = "label_values(vllm:request_success_total, model_name)"
    return [
        {"name": "DS_PROMETHEUS", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "model",
            "label": "Model",
            "type": "query",
            "datasource": _DATASOURCE,
            "query": {"query": models, "refId": "models"},
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]


def _panels() -> Iterator[dict[str, Any]]:
    top = 0
    for title, panels in ROWS.items():
        if title:
            yield {"type": "row", "title": title, "collapsed": False, "gridPos": _place(0, top, _COLUMNS, 1)}
            top += 1
        left = height = 0
        for panel in panels:
            width, height = panel.size
            if left + width > _COLUMNS:
                left, top = 0, top + height
            yield _described(panel, _place(left, top, width, height))
            left += width
        top += height
    yield {
        "type": "table",
        "title": "Slowest of the latest traces",
        "datasource": {"type": "jaeger", "uid": "jaeger"},
        "gridPos": _place(0, top, _COLUMNS, 8),
        "targets": [{"refId": "A", "queryType": "search", "service": "quire-gateway", "limit": 20}],
        "options": {"sortBy": [{"displayName": "Duration", "desc": True}]},
    }


def _described(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    custom = {"stacking": {"mode": "normal"}, "fillOpacity": 20} if panel.is_stacked else {}
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0, "custom": custom}
    return {
        "type": "stat" if panel.is_stat else "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"graphMode": "area"} if panel.is_stat else {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend}
            for index, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def _place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def main() -> int:
    """Write the dashboard, or with `--check` compare it; 1 if it differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it would change")
    text = json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"
    if not parser.parse_args().check:
        DASHBOARD.write_text(text)
        return 0
    if DASHBOARD.exists() and DASHBOARD.read_text() == text:
        return 0
    print(f"{DASHBOARD.name} is stale: run `make dashboard`")
    return 1


if __name__ == "__main__":
    sys.exit(main())
