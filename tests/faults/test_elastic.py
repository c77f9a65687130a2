"""The cluster changes while a run trains: it grows, loses nodes with and without notice; the batches stay the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.e2e.head import BIN, PATIENT, REPOSITORY, Head, Result, pipeline, tiny_config, two_sources
from tests.faults.test_kill import audit

STEPS = 400
NODE = {"num_cpus": 1, "object_store_memory": 150_000_000}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    train = {"steps": STEPS, "checkpoint_every_steps": 100, "validate_every_steps": 400, "sample_every_steps": STEPS}
    sources = [{**source, "max_epochs": 12} for source in two_sources(folder / "corpus")]
    train |= {"log_every_steps": 5, "resize_stable_s": 4, "cpus_per_worker": 0.5}
    return tiny_config(folder, sources, train=train)


@pytest.fixture(scope="module")
def undisturbed(head: Head, config: Path) -> Result:
    result = pipeline("pretrain", "--config", str(config), "run.name=undisturbed", env=head.env)
    assert result.code == 0, result.out + result.err
    return result


@pytest.fixture
def raylets() -> Iterator[Cluster]:
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "_system_config": PATIENT})
    cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


class Run:
    """A pipeline in the background, its terminal read line by line."""

    def __init__(self, cluster: Cluster, config: Path, name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "pipelines.pretrain", "--config", str(config), f"run.name={name}", *arguments]
        env = {**os.environ, "RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command, env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait_for(self, words: str) -> str:
        """The next line that holds these words."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if words in line:
                return line
        raise AssertionError(f"the run ended before {words!r}:\n" + "".join(self.lines))

    def summary(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        self.lines += list(self.process.stdout)
        assert self.process.wait(300) == 0, "".join(self.lines)
        return json.loads(Path(self.lines[-1].strip()).read_text())


def node_with_trainers(cluster: Cluster) -> Any:
    """A node beside the head that runs a trainer."""
    for node in cluster.worker_nodes:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        if any("RayTrainWorker" in " ".join(child.cmdline()) for child in raylet.children(recursive=True)):
            return node
    raise AssertionError("no node beside the head runs a trainer")


def drain(cluster: Cluster, node: Any, seconds: int) -> None:
    """A preemption notice, as a cloud's spot handler gives it."""
    subprocess.run(
        [str(BIN / "ray"), "drain-node", f"--address={cluster.address}", f"--node-id={node.node_id}",
         "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test", f"--deadline-remaining-seconds={seconds}"],
        check=True, capture_output=True, env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip


@pytest.mark.slow
def test_growth_notice_and_loss_train_the_same_batches(raylets: Cluster, config: Path, undisturbed: Result) -> None:
    run = Run(raylets, config, "elastic", "train.num_workers=[1,4]", "cluster.shared_storage=true")
    run.wait_for("2 workers begin at step 0")
    run.wait_for("step     20/")
    raylets.add_node(**NODE)
    grown = run.wait_for("4 workers begin at step")
    trained = [int(step) for step in re.findall(r"step +(\d+)/", "".join(run.lines))]
    assert int(grown.rsplit(" ", 1)[1]) >= max(trained), "growth lost work"
    drained = node_with_trainers(raylets)
    run.wait_for("step ")
    drain(raylets, drained, 40)
    notice = run.wait_for("a node is taken away")
    moved = run.wait_for("workers begin at step")
    saved = notice.split("step ")[1].split(" ")[0]
    assert moved.rstrip().endswith(f"2 workers begin at step {saved}"), "work was lost although there was time"
    raylets.remove_node(drained, allow_graceful=False)
    raylets.add_node(**NODE)
    run.wait_for("4 workers begin at step")
    run.wait_for("step ")
    raylets.remove_node(node_with_trainers(raylets), allow_graceful=False)
    run.wait_for("2 workers begin at step")
    summary = run.summary()
    assert "4 workers" in grown and summary["world_sizes"] == [2, 4] and summary["restarts"] >= 4
    assert summary["order_digest"] == undisturbed.summary["order_digest"]
    assert audit(config, "elastic") == audit(config, "undisturbed")
    assert summary["val_loss"] == pytest.approx(undisturbed.summary["val_loss"], rel=1e-2)
