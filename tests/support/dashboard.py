"""The Grafana dashboard as the tests read it."""

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.support.server import REPOSITORY

DASHBOARD: dict[str, Any] = json.loads(
    (REPOSITORY / "deploy" / "observability" / "grafana" / "quire.json").read_text()
)

_LABEL_VALUES = re.compile(r"label_values\((\S+), (\w+)\)")
# Panels whose series there are only once something has gone wrong.
OF_FAULTS = {"HTTP errors by status", "Refused"}


def dashboard_queries(rate_interval: str = "1m") -> Iterator[tuple[str, str]]:
    """Title of the panel and PromQL as Prometheus gets it, for every model; where variables have their values from."""
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            found = _LABEL_VALUES.fullmatch(variable["query"]["query"])
            assert found is not None, variable
            yield f"the variable {variable['name']}", f"count by ({found[2]}) ({found[1]})"
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            if "expr" in target:
                query = target["expr"].replace("$__rate_interval", rate_interval)
                yield panel["title"], query.replace("$__range", "30m").replace("$model", ".*")
