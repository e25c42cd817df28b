"""The dashboard and the alerts ask for what the services really expose, and Prometheus takes them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.alert_cases import CASES, unit_tests
from tests.deploy.exposed_metrics import Asked, asked, exposed
from tests.support.dashboard import DASHBOARD, dashboard_queries
from tests.support.server import REPOSITORY

OBSERVABILITY = REPOSITORY / "deploy" / "observability"
RULES = [
    rule
    for group in yaml.safe_load((OBSERVABILITY / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")


def test_the_dashboard_is_the_one_that_its_generator_writes() -> None:
    command = [sys.executable, "tools/generate_dashboard.py", "--check"]
    subprocess.run(command, cwd=REPOSITORY, check=True)


def test_every_query_and_alert_names_series_and_labels_that_the_services_expose() -> None:
    series = exposed()
    expressions = [*dashboard_queries(), *((rule["alert"], rule["expr"]) for rule in RULES)]
    assert len(expressions) > 60
    for title, expression in expressions:
        found = asked(expression)
        assert found.metrics, title
        for name, labels in found.metrics.items():
            assert name in series, f"{title}: nothing exposes {name}"
            assert labels <= series[name], f"{title}: {name} has no {labels - series[name]}"
        grouping = set().union(*(series[name] for name in found.metrics))
        assert found.grouping <= grouping, f"{title}: nothing has {found.grouping - grouping}"


def test_legends_name_labels_that_the_queries_leave() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            legend = target.get("legendFormat", "")
            if "{{" in legend and " by " in target["expr"]:
                label = legend[legend.index("{{") + 2 : legend.index("}}")]
                assert label in asked(target["expr"]).grouping, panel["title"]


def test_panels_do_not_overlap() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells, panel["title"]
        cells |= covered


def test_every_data_source_that_the_dashboard_names_is_provisioned() -> None:
    datasources = yaml.safe_load((OBSERVABILITY / "grafana" / "datasources.yaml").read_text())["datasources"]
    uids = {item["uid"] for item in datasources} | {"${DS_PROMETHEUS}"}
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"] if panel["type"] != "row"} <= uids


def test_spans_pass_the_collector_to_the_store() -> None:
    collector = yaml.safe_load((OBSERVABILITY / "collector.yaml").read_text())
    pipeline = collector["service"]["pipelines"]["traces"]
    for kind in ("receivers", "processors", "exporters"):
        assert set(pipeline[kind]) <= set(collector[kind])
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    for exporter in pipeline["exporters"]:
        assert collector["exporters"][exporter]["endpoint"].partition(":")[0] in services


def test_what_is_asked_of_an_expression_is_found_without_functions_strings_and_numbers() -> None:
    expression = 'sum by (le, a) (rate(x:y_bucket{b=~"{c}", d!="e"}[5m])) > 1e3 or vector(0) and on (f) z'
    assert asked(expression) == Asked({"x:y_bucket": {"b", "d"}, "z": set()}, {"le", "a", "f"})


@needs_promtool
def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    subprocess.run(["promtool", "check", "config", OBSERVABILITY / "prometheus.yml"], check=True)


@needs_promtool
def test_prometheus_takes_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": query} for number, (_, query) in enumerate(dashboard_queries())
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", path], check=True)


def test_every_alert_has_a_case() -> None:
    assert [case.alert for case in CASES] == [rule["alert"] for rule in RULES]


@needs_promtool
def test_each_alert_fires_on_its_case_and_only_there(tmp_path: Path) -> None:
    tests = [test for case in CASES for test in unit_tests(case)]
    path = tmp_path / "alerts.test.yml"
    path.write_text(yaml.safe_dump({"rule_files": [str(OBSERVABILITY / "alerts.yml")], "tests": tests}))
    run = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
