"""A real Prometheus reads a running job: every query of the board finds data, and every alert can be judged.

    python -m pytest -q -m "" tests/e2e/test_prometheus.py

It needs the program `prometheus`, which Debian has as a package of that name.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.manifests import CLUSTER, load
from tests.cluster.test_board import PANELS
from tests.e2e.head import Head, free_port, tiny_config, two_sources
from tests.faults.chaos import Run

PATIENCE_S = 300.0
QUERIES = [(panel["title"], target["expr"].replace("$run", ".*")) for panel in PANELS for target in panel["targets"]]


class Prometheus:
    """The config of cluster/grafana at another pace."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("prometheus")
        assert program, "install the program: apt-get install prometheus"
        config: dict[str, Any] = load("grafana/prometheus.yml")[0]
        config["global"] = {"scrape_interval": "2s", "evaluation_interval": "2s"}
        config["rule_files"] = [str(CLUSTER / "grafana" / name) for name in config["rule_files"]]
        config["scrape_configs"][0]["file_sd_configs"][0]["refresh_interval"] = "2s"
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.address = f"127.0.0.1:{free_port()}"
        self.process = subprocess.Popen(
            [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/series",
             f"--web.listen-address={self.address}"],
            stdout=(folder / "prometheus.log").open("wb"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def get(self, what: str, **asked: str) -> Any:
        url = f"http://{self.address}/api/v1/{what}?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)["data"]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture
def prometheus(head: Head, tmp_path: Path) -> Iterator[Prometheus]:
    one = Prometheus(tmp_path)
    yield one
    one.stop()


@pytest.mark.slow
def test_every_panel_of_the_board_has_data_of_a_running_job(head: Head, prometheus: Prometheus, tmp_path: Path) -> None:
    train = {"steps": 100_000, "checkpoint_every_steps": 20, "validate_every_steps": 20, "sample_every_steps": 100_000}
    sources = [{**source, "max_epochs": 100_000} for source in two_sources(tmp_path / "corpus")]
    config = tiny_config(tmp_path, sources, train=train, monitor={"device_peak_tflops": 0.05})
    run = Run(config, "watched", head.env)
    try:
        run.wait_for("checkpoint of step 20")
        empty, deadline_s = {query: title for title, query in QUERIES}, time.monotonic() + PATIENCE_S
        while empty and time.monotonic() < deadline_s:
            assert run.process.poll() is None, run.text()[-3000:]
            time.sleep(2)
            told = {query: prometheus.get("query", query=query)["result"] for query in empty}
            empty = {query: title for query, title in empty.items() if not told[query]}
        assert not empty, f"no data: {empty}"
        found = prometheus.get("query", query="max by (run) (ray_pretrainer_world_size)")["result"]
        assert [float(one["value"][1]) for one in found if one["metric"]["run"] == "watched"] == [2.0]
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        assert len(rules) >= 4 and {rule["health"] for rule in rules} == {"ok"}
    finally:
        run.stop()
