"""The Grafana dashboard as the tests read it."""

import json
from collections.abc import Iterator
from typing import Any

from tests.support.server import REPOSITORY

DASHBOARD: dict[str, Any] = json.loads(
    (REPOSITORY / "deploy" / "observability" / "grafana" / "quire.json").read_text()
)

# Panels whose series there are only once something has gone wrong.
OF_FAULTS = {"HTTP errors by status", "Refused"}


def dashboard_queries(rate_interval: str = "1m") -> Iterator[tuple[str, str]]:
    """Title of the panel, and PromQL as Prometheus gets it, for every model."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            if "expr" in target:
                query = target["expr"].replace("$__rate_interval", rate_interval)
                yield panel["title"], query.replace("$__range", "30m").replace("$model", ".*")
