"""Random kills over one training, from outside, and the proof that nothing of the stream changed.

    python -m tests.faults.chaos --kills 100 --seed 1        (make chaos)

A cluster of real raylets on this machine runs an elastic training in exact mode. Each disturbance hits it while it is
at work, then waits until it trains again. At the end every step's digest, the order digest and the digest of the
weights must be those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.e2e.head import PATIENT, REPOSITORY, hard_config

# Four workers fit on three nodes and two on two.
NODE = {"num_cpus": 1, "object_store_memory": 150_000_000}
PATIENCE_S = 600.0
STEP = re.compile(r"\] step +([\d,]+)/")


class Run:
    """The pipeline in the background; its terminal goes to a file. through: a command that starts another one."""

    def __init__(
        self, config: Path, name: str, env: dict[str, str], *arguments: str, through: Sequence[str] = ()
    ) -> None:
        self.command = [*through, sys.executable, "-m", "pipelines.pretrain", "--config", str(config)]
        self.command += [f"run.name={name}", *arguments]
        self.env, self.folder = {**os.environ, **env}, config.parent / "runs" / name
        self.log = config.parent / f"{name}.log"
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.env, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT
            )

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def steps_seen(self) -> list[int]:
        """Every step that the terminal has told of, in order; again when it was trained again."""
        return [int(number.replace(",", "")) for number in STEP.findall(self.text())]

    def wait(self, until: Callable[[], Any], what: str) -> Any:
        """Poll until something is true; fails when the run ends or too long passes."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            value = until()
            if value:
                return value
            assert self.process.poll() is None, f"the run ended before {what}:\n{self.text()[-5000:]}"
            time.sleep(0.2)
        raise TimeoutError(f"{what} did not happen in {PATIENCE_S:.0f} s:\n{self.text()[-5000:]}")

    def wait_for(self, words: str, start: int = 0) -> str:
        """The line that holds these words, in what the terminal says from `start` on."""

        def found() -> str | None:
            return next((line for line in self.text()[start:].splitlines() if words in line), None)

        return str(self.wait(found, repr(words)))

    def finish(self, timeout_s: float = 1200) -> dict[str, Any]:
        """The summary of the finished run."""
        assert self.process.wait(timeout_s) == 0, self.text()[-5000:]
        return json.loads((self.folder / "summary.json").read_text())

    def digests(self) -> dict[int, str]:
        """Step -> digest, of the last time that it was trained."""
        lines = [
            json.loads(line)
            for path in (self.folder / "audit").glob("*.jsonl")
            for line in path.read_text().splitlines()
        ]
        lines.sort(key=lambda line: (line["step"], line["attempt"]))
        return {line["step"]: line["digest"] for line in lines}

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@contextmanager
def raylets(nodes: int, **node: Any) -> Iterator[Cluster]:
    """A head and more nodes, each a real raylet."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, **node, "_system_config": PATIENT})
    for _ in range(nodes - 1):
        cluster.add_node(**{**NODE, **node})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def client_env(cluster: Cluster) -> dict[str, str]:
    return {
        "RAY_ADDRESS": cluster.address,
        "RAY_AUTH_MODE": "disabled",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    }


def processes(cluster: Cluster, *titles: str) -> list[psutil.Process]:
    """Ray workers of this cluster whose title holds one of these words."""
    found = []
    for node in [cluster.head_node, *cluster.worker_nodes]:
        for process in psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True):
            try:
                if any(title in " ".join(process.cmdline()) for title in titles):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
    return found


PROCESSES = {
    "trainer": ("RayTrainWorker",),
    "data task": ("read_chunks", "tokenize_chunk", "expand_positions"),
    "dedup actor": ("InOrderDedup",),
    "pack actor": ("PackWindows",),
}
KINDS = ("trainer", "trainer", "data task", "dedup actor", "pack actor", "node", "node", "driver")


@dataclass
class Chaos:
    """Disturbs one run."""

    cluster: Cluster
    run: Run
    rng: random.Random
    rows: list[tuple[str, int, float]] = field(default_factory=list)  # (kind, at step, s until it trained on)

    def disturb(self) -> None:
        """One disturbance while steps are being trained; returns when the run trains beyond where it was."""
        seen = len(self.run.steps_seen())
        self.run.wait(lambda: len(self.run.steps_seen()) > seen + self.rng.randrange(3), "a step")
        missing = [kind for kind in dict.fromkeys(KINDS) if kind not in {row[0] for row in self.rows}]
        kind = self.rng.choice(missing or KINDS)
        at, started_s = self.run.steps_seen()[-1], time.monotonic()
        if not self._hit(kind):
            return
        self.run.wait(lambda: self.run.steps_seen()[-1] > at, f"a step after {at}")
        self.rows.append((kind, at, time.monotonic() - started_s))
        if kind == "node":
            self.cluster.add_node(**NODE)  # only now, so that the run shrinks and then grows
        print(f"  {len(self.rows):>3}  {kind:<12} at step {at:>5}, on after {self.rows[-1][2]:5.1f} s", flush=True)

    def _hit(self, kind: str) -> bool:
        """Whether there was something of this kind at work to hit."""
        if kind == "driver":
            self.run.stop()
            self.run.start()
            return True
        if kind == "node":
            nodes = sorted(self.cluster.worker_nodes, key=lambda node: node.node_id)
            self.cluster.remove_node(self.rng.choice(nodes), allow_graceful=False)
            return True
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:  # tasks come and go
            victims = processes(self.cluster, *PROCESSES[kind])
            if victims:
                self.rng.choice(victims).kill()
                return True
        return False


def undisturbed(config: Path, *arguments: str) -> tuple[dict[str, Any], dict[int, str]]:
    """(summary, digests) of the same training with nobody near it."""
    with raylets(1, num_cpus=4) as cluster:
        run = Run(config, "undisturbed", client_env(cluster), "train.num_workers=2", *arguments)
        return run.finish(), run.digests()


def chaos(folder: Path, kills: int, seed: int, steps: int) -> str:
    """Run it; returns the table. AssertionError where anything differs from the undisturbed run."""
    train = {"steps": steps, "cpus_per_worker": 0.5, "checkpoint_every_steps": 10}
    train |= {"log_every_steps": 2, "validate_every_steps": steps, "sample_every_steps": steps, "exact": True}
    train |= {"resize_stable_s": 2, "max_failures": 10}
    data = {"chunk_bytes": 4096}  # about 90 a source and epoch; Ray's work for smaller ones would be most of the time
    config = hard_config(folder, steps, documents=max(600, min(3000, 2 * steps)), train=train, data=data)
    expected, digests = undisturbed(config)
    with raylets(3) as cluster:
        arguments = ("train.num_workers=[1,4]", "cluster.shared_storage=true")
        run = Run(config, "chaos", client_env(cluster), *arguments)
        hits = Chaos(cluster, run, random.Random(seed))
        try:
            while len(hits.rows) < kills:
                hits.disturb()
            summary = run.finish(2400)
        finally:
            run.stop()
    assert run.digests() == digests, "a step's digest differs from the undisturbed run"
    assert summary["order_digest"] == expected["order_digest"]
    assert summary["weights_sha256"] == expected["weights_sha256"] is not None
    starts = json.loads((run.folder / "starts.json").read_text())
    return table(hits.rows, summary, [start["world_size"] for start in starts])


def table(rows: list[tuple[str, int, float]], summary: dict[str, Any], worlds: list[int]) -> str:
    """What was done to the run and what it cost; `worlds` are the sizes of its worker groups in order."""
    counts = Counter(kind for kind, _at, _s in rows)
    lines = ["kind          kills   mean s to the next step"]
    for kind, count in sorted(counts.items()):
        mean_s = sum(s for k, _at, s in rows if k == kind) / count
        lines.append(f"{kind:<14}{count:>5}   {mean_s:8.1f}")
    sizes, resizes = ", ".join(map(str, sorted(set(worlds)))), sum(a != b for a, b in pairwise(worlds))
    lines.append(
        f"{len(rows)} kills, {summary['restarts']} restarts, {resizes} resizes, world sizes {sizes}; "
        "every digest is equal"
    )
    goodput = summary.get("goodput")
    if goodput:
        lines.append("goodput " + json.dumps(goodput))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(chaos(Path(folder), options.kills, options.seed, steps=12 * options.kills))


if __name__ == "__main__":
    main()
