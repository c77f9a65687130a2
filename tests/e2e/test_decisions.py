"""The decision log of a prepared source is the same for every number of data workers, nodes and retries."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset
import pytest
from ray.cluster_utils import Cluster

from tests.e2e.head import REPOSITORY, hard_config
from tests.faults.chaos import PROCESSES, client_env, processes, raylets


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hard_config(tmp_path_factory.mktemp("decisions"), 20, documents=600, data={"decisions": True})


def prepare(
    cluster: Cluster, config: Path, name: str, look_ahead_chunks: int, disturb: Callable[[subprocess.Popen], None]
) -> dict[str, bytes]:
    """The log's files, by their path in the ledger, of a run that `disturb` is let loose on."""
    command = [sys.executable, "-m", "pipelines.prepare", "--config", str(config), f"run.name={name}"]
    command.append(f"data.look_ahead_chunks={look_ahead_chunks}")
    process = subprocess.Popen(
        [*command, "cluster.shared_storage=true"],
        env={**os.environ, **client_env(cluster)}, cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    disturb(process)
    out, _err = process.communicate(timeout=300)
    assert process.returncode == 0, out
    ledger = config.parent / "runs" / name / "data" / "ledger"
    return {str(path.relative_to(ledger)): path.read_bytes() for path in ledger.glob("*/decisions/*.parquet")}


def nothing(_process: subprocess.Popen) -> None:
    pass


@pytest.mark.slow
def test_decisions_do_not_depend_on_workers_nodes_or_retries(config: Path) -> None:
    """Few chunks in flight on one node, so that nothing overtakes, against many on two nodes with 4 CPUs each."""
    with raylets(1, num_cpus=2) as cluster:
        alone = prepare(cluster, config, "one-node", 2, nothing)
    killed = []

    def kill_tasks(process: subprocess.Popen) -> None:
        """One process of each kind, as soon as it is there."""
        deadline = time.monotonic() + 120
        for kind in ("data task", "dedup actor", "data task"):
            while process.poll() is None and time.monotonic() < deadline:
                victims = processes(cluster, *PROCESSES[kind])
                if victims:
                    victims[-1].kill()
                    killed.append(kind)
                    break
                time.sleep(0.05)
            time.sleep(1)

    with raylets(2, num_cpus=4) as cluster:
        disturbed = prepare(cluster, config, "two-nodes", 16, kill_tasks)
    assert killed == ["data task", "dedup actor", "data task"]
    assert len(alone) >= 100 and disturbed == alone
    paths = [str(path) for path in config.parent.glob("runs/one-node/data/ledger/*/decisions/*.parquet")]
    rows = pyarrow.dataset.dataset(paths).to_table()
    reasons = set(rows.column("reason").to_pylist())
    assert {None, "duplicate_exact"} < reasons and len(rows) == len(set(rows.column("id").to_pylist()))
