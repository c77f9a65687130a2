"""Grafana's board and the alerts ask for metrics that the code exports, with labels that they have.

python -m pytest -q tests/cluster/test_board.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import pytest

from pipelines.driver import gauges as of_driver
from pretrainer.data import meters as of_data
from pretrainer.train import reporter as of_ranks
from tests.cluster.manifests import CLUSTER, every, load

PREFIX = "ray_pretrainer_"
EXPORTED = {
    **{name: {"run", *labels} for name, (_text, labels) in of_driver.GAUGES.items()},
    **{name: {"run", "rank"} for name in of_ranks.GAUGES},
    **{name: {"run", "source"} for name in (*of_data.COUNTERS, *of_data.GAUGES)},
}
"""Name -> labels, as the code has them."""

BOARD = json.loads((CLUSTER / "grafana" / "board.json").read_text(encoding="utf-8"))
RULES = load("grafana/alerts.yml")[0]["groups"][0]["rules"]
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    *[(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]],
    *[(note["name"], note["expr"]) for note in BOARD["annotations"]["list"]],
    *[(rule["alert"], rule["expr"]) for rule in RULES],
]


def parsed(query: str) -> Any:
    return promql_parser.parse(query)


def parts(node: Any) -> Iterator[Any]:
    """Every node of a parsed query."""
    yield node
    for name in ("expr", "lhs", "rhs", "args", "vector_selector", "vs"):
        inner = getattr(node, name, None)
        for one in inner if isinstance(inner, list) else [inner]:
            if one is not None and not isinstance(one, str | float):
                yield from parts(one)


def asked(query: str) -> dict[str, set[str]]:
    """Metric -> labels that its selectors name."""
    found: dict[str, set[str]] = {}
    for node in parts(parsed(query)):
        if isinstance(node, promql_parser.VectorSelector):
            found.setdefault(node.name, set()).update(matcher.name for matcher in node.matchers.matchers)
    return found


def grouped(query: str) -> set[str]:
    """Labels that aggregations keep."""
    return {
        label
        for node in parts(parsed(query))
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier
        for label in node.modifier.labels
    }


@pytest.mark.parametrize(("where", "query"), QUERIES)
def test_queries_ask_for_what_is_exported(where: str, query: str) -> None:
    metrics = asked(query)
    assert metrics, f"{where}: no metric was found in {query}"
    for metric, labels in metrics.items():
        assert metric.startswith(PREFIX), f"{where}: {metric}"
        name = metric.removeprefix(PREFIX)
        assert name in EXPORTED, f"{where}: {name} is exported nowhere"
        assert labels | grouped(query) <= EXPORTED[name], f"{where}: {metric} has the labels {EXPORTED[name]}"


def test_the_parser_sees_metrics_wherever_they_stand() -> None:
    query = 'max by (run) (changes(a{x="1"}[20m])) == 0 and (time() - -b > 1 or sum(rate(c[5m])) unless d offset 10m)'
    assert asked(query) == {"a": {"x"}, "b": set(), "c": set(), "d": set()} and grouped(query) == {"run"}


def test_every_metric_is_on_the_board() -> None:
    """What nobody looks at is not worth its series."""
    shown = {name.removeprefix(PREFIX) for _where, query in QUERIES for name in asked(query)}
    assert set(EXPORTED) - shown == {"checkpoint_step", "run_tokens"}


def test_what_the_operator_needs_is_there() -> None:
    shown = {name.removeprefix(PREFIX) for panel in PANELS for t in panel["targets"] for name in asked(t["expr"])}
    assert {
        "loss", "rank_tokens_per_s", "mfu", "data_wait_fraction", "rank0_seconds", "documents_kept_total",
        "dedup_index_bytes", "lead_steps", "checkpoint_total_s", "world_size",
    } <= shown  # fmt: skip


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: f"{panel['id']}-{panel['title']}")
def test_panels_are_of_one_run_and_explain_themselves(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    for target in panel["targets"]:
        assert all("run" in labels for labels in asked(target["expr"]).values())
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= grouped(target["expr"]) | {"run"}


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        at = panel["gridPos"]
        mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not mine & cells and at["x"] + at["w"] <= 24
        cells |= mine
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)


def test_everything_asks_the_chosen_prometheus() -> None:
    sources = [one for one in every(BOARD, "datasource") if isinstance(one, dict)]
    assert len(sources) > 40 and all(one == {"type": "prometheus", "uid": "${datasource}"} for one in sources)


def test_alerts_lead_to_the_runbook() -> None:
    """Every alert names a heading of cluster/README.md."""
    headings = re.findall(r"^### (.+)$", (CLUSTER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(RULES) >= 4 and {rule["annotations"]["runbook"] for rule in RULES} <= set(headings)
    assert {rule["labels"]["severity"] for rule in RULES} == {"page", "ticket"}


def test_alerts_speak_of_labels_that_their_query_keeps() -> None:
    for rule in RULES:
        named = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        assert named and named <= grouped(rule["expr"])


def test_prometheus_finds_the_alerts_and_the_nodes() -> None:
    [config] = load("grafana/prometheus.yml")
    assert all((CLUSTER / "grafana" / name).is_file() for name in config["rule_files"])
    [job] = config["scrape_configs"]
    assert job["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
