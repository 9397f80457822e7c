"""What is offered for Prometheus and Grafana speaks of metrics there are."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from cortex.config.schema import GatewaySection, PluginSettings
from cortex.plugins import Plugins
from tests.gateway.exported import exported

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "examples/grafana.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPORTED = exported(Plugins(PluginSettings(only=frozenset())))
GATEWAY = {name for name in EXPORTED if not name.startswith("cortex_neuron_")}
OF_HISTOGRAMS = re.compile(r"_(bucket|sum|count)$")


def expressions() -> Iterator[str]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


def metrics_in(text: str) -> set[str]:
    found = re.findall(r"\bcortex_\w+", text)
    return {name if name in EXPORTED else OF_HISTOGRAMS.sub("", name) for name in found}


def labels_in(expression: str) -> set[str]:
    grouped = ",".join(re.findall(r"by \(([^)]*)\)", expression)).replace(" ", "")
    return {*grouped.split(","), *re.findall(r'(\w+)=~?"', expression)} - {"le", ""}


def test_every_metric_of_the_dashboard_is_exported_and_every_one_of_the_gateway_is_shown():
    shown = set().union(*map(metrics_in, expressions()))
    assert shown == GATEWAY


def test_the_dashboard_selects_and_groups_by_labels_its_metrics_have():
    for expression in expressions():
        for name in metrics_in(expression):
            assert labels_in(expression) <= {*EXPORTED[name]}, expression


def test_legends_name_labels_their_metrics_have():
    for panel in PANELS:
        for target in panel["targets"]:
            named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            for name in metrics_in(target["expr"]):
                assert named <= {*EXPORTED[name]}, target


def test_the_dashboard_has_its_rows_and_no_two_panels_in_one_place():
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Fleet", "Models", "Requests", "Devices", "Errors"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for one, other in combinations(DASHBOARD["panels"], 2):
        assert apart(one["gridPos"], other["gridPos"]), (one["title"], other["title"])
    for panel in PANELS:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["description"].endswith(".")


def apart(one: dict[str, Any], other: dict[str, Any]) -> bool:
    beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
    above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    return beside or above


def test_prometheus_is_sent_where_the_gateway_listens():
    said = (ROOT / "examples/prometheus.yml").read_text("utf-8")
    assert f'["localhost:{GatewaySection().metrics_listen.port}"]' in said


# Alerts.

ALERTS = ROOT / "examples/alerts.yml"
RULES = re.findall(
    r"- alert: (\w+)\n +expr: (.*?)\n        (?:for|labels):", ALERTS.read_text("utf-8"), re.DOTALL
)


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, check=False, timeout=25
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_its_configuration_with_the_alerts():
    said = promtool(
        "check", "config", "--lint=all", "--lint-fatal", ROOT / "examples/prometheus.yml"
    )
    assert f"{len(RULES)} rules found" in said


def test_every_alert_is_raised_when_it_should_be_and_not_before():
    cases = Path(__file__).with_name("alerts.yml")
    promtool("test", "rules", cases)
    text = cases.read_text("utf-8")
    raised = set(re.findall(r"alertname: (\w+)\n +exp_alerts:\n", text))
    quiet = set(re.findall(r"alertname: (\w+)\n +exp_alerts: \[\]", text))
    assert raised == quiet == {name for name, _ in RULES}


@pytest.mark.parametrize(("name", "expression"), RULES)
def test_an_alert_speaks_of_metrics_and_labels_there_are(name, expression):
    named = metrics_in(expression)
    assert named or name in ("CortexGatewayDown", "CortexDiskFills")
    assert named <= GATEWAY
    for metric in named:
        selected = {*re.findall(metric + r"\w*{(\w+)[!=]", expression)}
        assert selected <= {*EXPORTED[metric]}
        by = re.findall(r"by \(([^)]*)\) \(.*?" + metric, expression)
        labels = set(", ".join(by).split(", ")) - {"", "le", "instance"}
        assert labels <= {*EXPORTED[metric]}


def test_the_alerts_are_documented_with_metrics_that_are_exported():
    page = (ROOT / "docs/operations.md").read_text("utf-8")
    table = re.search(r"^## What to alert on$(.*?)^## ", page, re.MULTILINE | re.DOTALL)[1]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == [name for name, _ in RULES]
    assert metrics_in(table) <= GATEWAY
