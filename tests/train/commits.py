"""Commits without Ray, for tests and benchmarks: folders on this disk, and a list in the format of Ray's controller."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pretrainer.config import StabilityConfig
from pretrainer.storage import Store
from pretrainer.train.checkpoints.committed import CHECKPOINTS, SNAPSHOT, committed_checkpoints
from pretrainer.train.checkpoints.saving import Saved, Saving
from pretrainer.train.telemetry.audit import Audit
from pretrainer.train.telemetry.phases import Phases
from tests.train.specs import worker_spec

POLL_S = 0.01


class LocalCommits:
    """One rank's. `gate` holds its uploads back while it is closed; `events` are what happened, in order."""

    def __init__(self, run: str | Path, rank: int = 0, world: int = 1) -> None:
        self.run, self.rank, self.world = Path(run), rank, world
        self.gate, self.events = threading.Event(), list[tuple[str, str]]()
        self.metrics: dict[str, dict[str, Any]] = {}
        self.gate.set()

    def upload(self, folder: Path, name: str) -> Path:
        self.gate.wait()
        target = self.run / CHECKPOINTS / name
        target.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir(), key=lambda file: file.name.startswith("digests")):  # these come last
            shutil.copy(file, target / file.name)
        self.events.append(("uploaded", name))
        return target

    def report(self, saved: Saved, folder: Path, name: str, uploaded: Future[Any]) -> None:
        self.events.append(("reported", name))
        self.metrics[name] = {"step": saved.state.step, "asked": saved.asked}

    def wait(self, name: str) -> None:
        while not all((self.run / CHECKPOINTS / name / f"digests.rank{r}.json").exists() for r in range(self.world)):
            time.sleep(POLL_S)
        listed = [self._listed(known) for known in self._known()] + [self._listed(name)]
        snapshot = {"checkpoint_results": listed, "latest_checkpoint_result": listed[-1]}
        Store(str(self.run)).write(SNAPSHOT, json.dumps(snapshot).encode())
        self.events.append(("committed", name))

    def _known(self) -> list[str]:
        return [folder.split("/")[1] for folder in committed_checkpoints(Store(str(self.run))).values()]

    def _listed(self, name: str) -> dict[str, Any]:
        return {"checkpoint_dir_name": name, "metrics": self.metrics[name]}


def make_saving(
    commits: LocalCommits, model: Any, optimizer: Any, audited: bool = True, on_spike: Any = "report", **train: Any
) -> Saving:
    """A rank's Saving; `audited` writes the audit log, which takes a process group. train: fields of the config."""
    spec, stability = worker_spec(commits.run), StabilityConfig(on_spike=on_spike)
    spec = replace(spec, config=replace(spec.config, train=replace(spec.config.train, **train), stability=stability))
    written = SimpleNamespace(rank=commits.rank, attempt=0, write=lambda state: f"digest of {state.step}")
    audit: Any = Audit(spec, commits.rank, commits.world, 0) if audited else written
    phases = Phases(commits.rank, commits.world, os.getpid(), "node", lambda _said: None, 1.0)
    return Saving(spec, model, optimizer, audit, phases, commits)
