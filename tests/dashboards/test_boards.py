"""Boards, rules, documentation and code name the same metrics.

Alerts fire on the series that are made for them, and on no others.
"""

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.serving.metrics import SCORES, IngressMetrics, ReplicaMetrics, merged
from orchestrator.training.live_metrics import METRICS, Histogram

REPOSITORY = Path(__file__).parents[2]
DASHBOARDS = REPOSITORY / "dashboards"
BOARDS = {path.stem: json.loads(path.read_text()) for path in (DASHBOARDS / "grafana").glob("*.json")}
RULES = [
    rule
    for group in yaml.safe_load((DASHBOARDS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
MONITORING = (REPOSITORY / "docs" / "monitoring.md").read_text()

OTHERS_METRICS = {
    # Prometheus' own
    "up",
    "ALERTS",
    # of Ray 2.60's nodes: ray/dashboard/modules/reporter/reporter_agent.py and the raylet
    "ray_node_cpu_utilization",
    "ray_node_gpus_utilization",
    "ray_node_mem_used",
    "ray_node_mem_total",
    "ray_node_disk_utilization_percentage",
    "ray_object_store_used_memory",
    "ray_object_store_available_memory",
}

_WORDS = {
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
}


def metrics_in(expression: str) -> set[str]:
    """The metrics that a PromQL expression names.

    They are the words that are not strings, selectors, ranges, labels, functions or numbers.
    """
    expression = re.sub(r'"[^"]*"', "", expression)
    expression = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", expression)
    expression = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", expression)
    return {
        name
        for name in re.findall(r"(?<![\w.])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])", expression)
        if name not in _WORDS
    }


def panels(board: dict) -> list[dict]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions(board: dict) -> list[str]:
    return [target["expr"] for panel in panels(board) for target in panel["targets"]]


def queried(board: dict) -> str:
    """What the board's variable is filled from, without `label_values(METRIC, label)`."""
    return re.fullmatch(r"label_values\((\w+), \w+\)", board["templating"]["list"][1]["query"]["query"])[1]


def named() -> set[str]:
    """Every metric on a board or in a rule, but those that rules record."""
    of_boards = {
        name
        for board in BOARDS.values()
        for text in [*expressions(board), queried(board)]
        for name in metrics_in(text)
    }
    of_rules = {name for rule in RULES for name in metrics_in(rule["expr"])}
    return of_boards | of_rules - {rule.get("record") for rule in RULES} - {None}


def of_runs() -> dict[str, set[str]]:
    """Names in Prometheus of each metric of a run."""
    parts = ("_bucket", "_count", "_sum")
    return {
        name: {f"ray_{name}{part}" for part in (parts if metric.kind is Histogram else ("",))}
        for name, metric in METRICS.items()
    }


def of_service() -> dict[str, set[str]]:
    """Names in Prometheus of each metric of the service, from pages on which something has been counted."""
    ingress, replica = IngressMetrics(), ReplicaMetrics("run/tiny@12345678")
    for registry in (ingress.registry, replica.registry):
        _touch(registry)
    page = merged({("laser-ingress", 0): ingress.text(), ("tiny", 0): replica.text()}).decode()
    families = text_string_to_metric_families(page)
    samples = {family.name: {sample.name for sample in family.samples} for family in families}
    return {name: names for name, names in samples.items() if not name.endswith("_created")}


def _touch(registry: CollectorRegistry) -> None:
    """Give every metric with labels a first series."""
    for metric in registry._collector_to_names:
        if metric._labelnames and not metric._labelvalues:
            metric.labels(*metric._labelnames)


RECORDED = {rule["record"] for rule in RULES if "record" in rule}


def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip(
            "promtool is not installed (Debian: apt-get install prometheus): rules and expressions were not "
            "checked"
        )
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_metrics_in_an_expression():
    expression = (
        'sum by (run, le) (rate(a_b:c{x="y"}[5m])) / on () (d or vector(0)) > 0.05 * time() '
        "and e offset 1d unless on (run) 1e3 < f"
    )
    assert metrics_in(expression) == {"a_b:c", "d", "e", "f"}


def test_boards_and_rules_name_only_metrics_that_there_are():
    declared = set().union(*of_runs().values(), *of_service().values(), OTHERS_METRICS, RECORDED)
    assert named() - declared == set()


def test_every_metric_is_on_a_board_or_in_a_rule():
    unseen = {name for name, names in {**of_runs(), **of_service()}.items() if not names & named()}
    assert unseen == set()


def test_a_score_histogram_has_no_sum_and_the_recorded_mean_fits_its_buckets():
    assert "laser_self_reward_sum" not in of_service()["laser_self_reward"], (
        "negative buckets: hence the mean from the buckets"
    )
    assert [round(second - first, 9) for first, second in itertools.pairwise(SCORES)] == [0.1] * 20
    assert SCORES[-1] == 1.5, "1.55 is the middle of the bucket after the last bound"
    assert 0.5 in SCORES, "the share called correct is read at this bound"


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_explains_itself_and_asks_the_chosen_datasource(name):
    board = BOARDS[name]
    assert board["uid"] == f"laser-{name}"
    datasource, variable = board["templating"]["list"]
    assert (datasource["name"], datasource["type"], datasource["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in panels(board):
        title = panel["title"]
        assert len(panel["description"]) > 20, title
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, title
        assert panel["type"] == "heatmap" or "unit" in panel["fieldConfig"]["defaults"], title
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0, title
        for target in panel["targets"]:
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= {variable["name"], "__rate_interval"}, title
            for selector in re.findall(r"ray_laser_\w+(\{[^}]*\})?", target["expr"]):
                assert selector == '{run="$run"}', f"{title}: of the chosen run alone"


@pytest.mark.parametrize("name", BOARDS)
def test_panels_do_not_overlap(name):
    taken = set()
    for panel in BOARDS[name]["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_provisioning_gives_grafana_the_datasource_and_the_boards():
    provisioning = DASHBOARDS / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["isDefault"], source["url"]) == ("prometheus", True, "$PROMETHEUS_URL")
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "laser.yaml").read_text())["providers"]
    assert provider["options"] == {"path": "/etc/grafana/boards"}


def test_every_alert_says_what_it_is_and_what_to_do():
    alerts = [rule for rule in RULES if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) > 0
    for rule in alerts:
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
        assert "{{ $value" in rule["annotations"]["summary"] or "{{ $labels" in rule["annotations"]["summary"]
        assert len(rule["annotations"]["description"]) > 80, rule["alert"]


def test_the_documentation_has_every_metric_and_alert():
    tables = dict(re.findall(r"^\| `([\w:]+)`[^|]*\| ([^|]+) \|", MONITORING, re.MULTILINE))
    described = {f"ray_{name}": metric.about for name, metric in METRICS.items()}
    assert {name: about for name, about in tables.items() if name.startswith("ray_laser_")} == described
    assert {name for name in tables if name.startswith("Laser")} == {
        rule["alert"] for rule in RULES if "alert" in rule
    }


def test_prometheus_takes_its_configuration_and_rules():
    promtool("check", "config", str(DASHBOARDS / "prometheus.yml"))


def test_alerts_fire_when_they_should_and_only_then():
    unit_tests = REPOSITORY / "tests" / "dashboards" / "alerts_test.yml"
    for rule in RULES:
        assert rule.get("alert", "") in unit_tests.read_text(), "an alert without a series that fires it"
    promtool("test", "rules", str(unit_tests))


def test_expressions_of_the_boards_parse(tmp_path):
    rules = [
        {"record": f"{name}:panel{number}", "expr": re.sub(r"\$__rate_interval", "1m", expression)}
        for name, board in BOARDS.items()
        for number, expression in enumerate(expressions(board))
    ]
    path = tmp_path / "boards.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "boards", "rules": rules}]}))
    promtool("check", "rules", str(path))
