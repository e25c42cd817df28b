"""What the services' real registries expose, and what a PromQL expression asks for."""

import json
import re
import subprocess
import sys
from typing import NamedTuple

from quire.settings import SERVICES
from tests.support.server import REPOSITORY

# Each service in a process of its own: a process has one registry.
_PROGRAM = """
import importlib, json, sys
importlib.import_module(sys.argv[1] + ".metrics")
from quire.metrics import REGISTRY
series = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
found = {}
for collector in list(REGISTRY._collector_to_names):
    labels = getattr(collector, "_labelnames", None) or getattr(collector, "_label_names", ())
    for metric in collector.collect():
        found |= {metric.name + suffix: list(labels) for suffix in series[metric.type]}
print(json.dumps(found))
"""

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_RANGE = re.compile(r"\[[^\]]*\]")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NUMBER = re.compile(r"\b\d[\w.]*")
_SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)(?![\w:])(?!\s*\()(?:\s*\{([^}]*)\})?")
_KEYWORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}
# What Prometheus adds to everything that it scrapes, as deploy/observability/prometheus.yml has it.
TARGET_LABELS = {"job", "instance", "service"}
OF_PROMETHEUS: dict[str, set[str]] = {"up": TARGET_LABELS}


class Asked(NamedTuple):
    """Metric names, each with the labels that its matchers name; and labels that results are grouped by."""

    metrics: dict[str, set[str]]
    grouping: set[str]


def exposed() -> dict[str, set[str]]:
    """Names of all series, each with its labels."""
    found = dict(OF_PROMETHEUS)
    for service in SERVICES:
        command = [sys.executable, "-c", _PROGRAM, service]
        run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
        for name, labels in json.loads(run.stdout).items():
            extra = {"le"} if name.endswith("_bucket") else set()
            found[name] = {*labels, *TARGET_LABELS, *extra}
    return found


def asked(expression: str) -> Asked:
    """The metrics and labels of an expression; Grafana's variables may be in it."""
    rest = _NUMBER.sub("", _RANGE.sub("", _STRING.sub('""', expression)))
    grouping = {label.strip() for match in _GROUPING.findall(rest) for label in match.split(",")}
    rest = _GROUPING.sub("", rest)
    metrics: dict[str, set[str]] = {}
    for name, matchers in _SELECTOR.findall(rest):
        if name.lower() not in _KEYWORDS:
            labels = {re.split(r"[=!]", matcher)[0].strip() for matcher in matchers.split(",") if matcher}
            metrics[name] = metrics.get(name, set()) | labels
    return Asked(metrics, grouping)
