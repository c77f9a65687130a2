"""Ray's own autoscaler grows a training from nothing, a node is lost and one is taken away: the batches are the same.

    python -m tests.faults.cluster_demo [--page FILE]        (make cluster-demo)

A head without a worker gets an elastic job of one to three workers. The autoscaler starts simulated nodes, which are
real raylets (cluster/local/start.py), and the training grows; one node is killed while there are no new ones,
and it shrinks; another gets a preemption notice, and it saves and moves; new nodes come, and it grows again. At the end
every step's digest and the order digest must be those of a run with one worker that nobody disturbed. A page shows loss
and world size over the steps.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray._raylet import GcsClient
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from tests.e2e.head import BIN, REPOSITORY, corpus, free_port, tiny_config
from tests.faults.chaos import Run, client_env, raylets

NOTICE_S = 25


def local_start() -> Any:
    """The module cluster/local/start.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("local_start", REPOSITORY / "cluster/local/start.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def write_config(folder: Path, steps: int) -> Path:
    train = {"steps": steps, "checkpoint_every_steps": 20, "validate_every_steps": steps, "sample_every_steps": steps}
    train |= {"log_every_steps": 5, "resize_stable_s": 6, "cpus_per_worker": 0.6}  # a node has room for one and data
    shards = [str(shard) for shard in sorted(corpus(folder / "corpus").iterdir())]
    source = {"name": "corpus", "uris": shards, "preset": "code", "id_column": "id"}
    data = {"read_cpus": 0.05, "look_ahead_chunks": 2}
    return tiny_config(folder, [source], train=train, data=data, monitor={"profile_every_steps": 0})


@dataclass
class Timeline:
    """What happened when, for the terminal."""

    started_s: float = field(default_factory=time.monotonic)
    rows: list[str] = field(default_factory=list)

    def say(self, words: str) -> None:
        self.rows.append(f"  {time.monotonic() - self.started_s:5.0f} s  {words}")
        print(self.rows[-1], flush=True)


def workers_begin(run: Run, start: int, least: int, most: int) -> int:
    """Wait until so many workers have begun, in what the terminal says from `start` on; returns how many."""

    def begun() -> int | None:
        sizes = [int(line.split("] ")[1].split()[0]) for line in run.text()[start:].splitlines()
                 if "workers begin at step" in line]  # fmt: skip
        return next((size for size in reversed(sizes) if least <= size <= most), None)

    return int(run.wait(begun, f"{least} to {most} workers"))


def disturb(run: Run, cluster: Any, timeline: Timeline, most: int) -> None:
    """Let it grow, kill a node while there are no new ones, then give another one notice while there are again."""
    workers = workers_begin(run, 0, most, most)
    timeline.say(f"{len(cluster.nodes())} nodes, training has grown to {workers} workers")
    with no_new_nodes(cluster):
        victim, before = node_that_trains(run, cluster), len(run.text())
        kill(cluster.nodes()[victim])
        timeline.say("a node is killed")
        workers = workers_begin(run, ended(run, before, "failure"), 1, workers - 1)
        timeline.say(f"training goes on with {workers} workers")
        victim, before = node_that_trains(run, cluster), len(run.text())
        drain(cluster, victim)
        timeline.say(f"a node gets notice: gone in {NOTICE_S} s; the cloud has new ones again")
    at = ended(run, before, "preempted")
    timeline.say("the workers have saved and ended")
    timeline.say(f"training has grown to {workers_begin(run, at, workers + 1, most)} workers")


def node_that_trains(run: Run, cluster: Any) -> str:
    """The id of a node with a trainer, once it has trained another step; at once then, for the run is a short one."""
    seen = len(run.steps_seen())
    node_id = str(run.wait(lambda: node_with_trainers(cluster), "a node that trains"))
    run.wait(lambda: len(run.steps_seen()) > seen, "a step")
    return node_id


def kill(raylet: psutil.Process) -> None:
    """A machine that is gone: the raylet and all that it has started, at once."""
    for process in [raylet, *raylet.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def ended(run: Run, start: int, why: str) -> int:
    """Where the terminal says that the workers ended for this reason."""
    words = f"the workers ended ({why})"
    run.wait_for(words, start)
    return run.text().index(words, start)


@contextlib.contextmanager
def no_new_nodes(cluster: Any) -> Iterator[None]:
    """The cloud has none for now: the process of Ray's autoscaler stands still."""
    autoscaler = [child for child in psutil.Process(cluster.process.pid).children(recursive=True)
                  if any(word.endswith("monitor.py") and "autoscaler" in word for word in child.cmdline())]  # fmt: skip
    assert len(autoscaler) == 1, autoscaler
    autoscaler[0].suspend()
    try:
        yield
    finally:
        autoscaler[0].resume()


def node_with_trainers(cluster: Any) -> str | None:
    """The id of a node that runs a trainer."""
    for node_id, raylet in cluster.nodes().items():
        with contextlib.suppress(psutil.Error):
            if any("RayTrainWorker" in " ".join(child.cmdline()) for child in raylet.children(recursive=True)):
                return str(node_id)
    return None


def drain(cluster: Any, node_id: str) -> None:
    """A preemption notice: what `ray drain-node` asks of Ray, without its 5 s of start."""
    reason, gone_ms = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), int((time.time() + NOTICE_S) * 1000)
    accepted, why = GcsClient(address=cluster.gcs).drain_node(node_id, reason, "demo", gone_ms)
    assert accepted, why


def undisturbed(config: Path) -> tuple[dict[str, Any], dict[int, str]]:
    """(summary, digests) of the same training with one worker on a node of its own."""
    with raylets(1, num_cpus=2, include_dashboard=False) as alone:
        run = Run(config, "undisturbed", client_env(alone), "train.num_workers=1")
        return run.finish(), run.digests()


def demo(folder: Path, steps: int, most: int) -> Run:
    """Run it; returns the finished run. AssertionError where a digest differs from the undisturbed run."""
    config, timeline = write_config(folder, steps), Timeline()
    expected, digests = undisturbed(config)
    timeline.say(f"the undisturbed run is over: order digest {expected['order_digest'][:16]}")
    run, summary = disturbed(folder, config, timeline, most)
    assert run.digests() == digests, "a step's digest differs from the undisturbed run"
    assert summary["order_digest"] == expected["order_digest"]
    assert len(summary["world_sizes"]) > 1 and summary["restarts"] >= 2
    return run


def disturbed(folder: Path, config: Path, timeline: Timeline, most: int) -> tuple[Run, dict[str, Any]]:
    """The elastic job, with its summary, on a cluster that begins with no node and must end with none."""
    env = {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60"}
    start = local_start().LocalCluster.start
    cluster = start(folder, max_nodes=most, idle_minutes=0.2, dashboard_port=free_port(), **env)
    try:
        timeline.say(f"a head with {len(cluster.nodes())} nodes; an elastic job of 1 to {most} workers is submitted")
        job = [str(BIN / "ray"), "job", "submit", f"--address={cluster.dashboard}", "--"]
        more = (f"train.num_workers=[1,{most}]", "cluster.autoscaling=true", "cluster.shared_storage=true")
        run = Run(config, "elastic", env, *more, through=job)
        try:
            disturb(run, cluster, timeline, most)
            summary = run.finish()
        finally:
            run.stop()
        timeline.say(f"the job is done: order digest {summary['order_digest'][:16]}")
        deadline_s = time.monotonic() + 90
        while cluster.nodes() and time.monotonic() < deadline_s:
            time.sleep(1)
        timeline.say(f"{len(cluster.nodes())} nodes are left: the autoscaler has taken the others back")
        assert not cluster.nodes(), "the cluster does not scale to zero when the run is over"
    finally:
        cluster.stop()
    return run, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=110)
    parser.add_argument("--page", type=Path, default=Path("cluster-demo.html"), help="loss and world size, as a page")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cluster-demo-") as name:
        run = demo(Path(name), options.steps, most=3)
        shutil.copy(run.folder / "report/report.html", options.page)
    print(f"every digest is that of the undisturbed run; loss and world size over the steps: {options.page}")


if __name__ == "__main__":
    main()
