"""A sweep as a user runs it: trials are whole runs on tokens that were curated once, and its best config trains."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.head import REPOSITORY, Head, Result, corpus, pipeline, tiny_config

pytestmark = pytest.mark.slow  # minutes of real runs; make test-all has them

BATCHES, RATES = "train.global_batch_tokens, values: [500, 512]", "train.learning_rate, values: [1e-3, 1e-2]"
SPACE = f"sweep.space=[{{field: {BATCHES}}}, {{field: {RATES}}}]"


def sweep_file(folder: Path, steps: int = 16, **sweep: Any) -> Path:
    """One small source, one worker, a batch of 512 tokens."""
    source = {"name": "all", "uris": [str(corpus(folder / "corpus"))], "preset": "code", "max_epochs": 8}
    train = {"num_workers": 1, "steps": steps, "checkpoint_every_steps": max(4, steps // 20), "log_every_steps": 2}
    values = {"reports": 4, "max_concurrent_trials": 2, **sweep}
    return tiny_config(folder, [source], train=train, sweep=values, monitor={"every_steps": 2})


def records(run: Path) -> dict[str, dict[str, Any]]:
    """Progress of every trial."""
    return {path.parent.name: json.loads(path.read_text()) for path in run.glob("trials/*/progress.json")}


def mlflow_runs(store: Path) -> dict[str, tuple[str, str | None]]:
    """Name of a run -> (status, name of its parent)."""
    with sqlite3.connect(store / "mlflow.db") as base:
        rows = list(base.execute("select run_uuid, name, status from runs"))
        parents = dict(base.execute("select run_uuid, value from tags where key = 'mlflow.parentRunId'"))
    names = {run: name for run, name, _status in rows}
    return {name: (status, names.get(parents.get(run, ""))) for run, name, status in rows}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def swept(head: Head, folder: Path) -> Result:
    """Two good trials, and one with a value that no trial can have."""
    arguments = ["--config", str(sweep_file(folder)), "run.name=sweep", SPACE]
    return pipeline("tune", *arguments, env=head.env, timeout_s=2400)


def test_a_sweep_ends_with_a_winner_whatever_single_trials_do(swept: Result, folder: Path) -> None:
    assert swept.code == 0, swept.out + swept.err
    summary, run = swept.summary, folder / "runs/sweep"
    assert summary["status"] == "completed" and len(summary["trials"]) == 4
    by_status = {status: [t for t in summary["trials"] if t["status"] == status] for status in ("completed", "failed")}
    assert len(by_status["completed"]) == 2 and len(by_status["failed"]) == 2
    assert all("multiple of" in trial["message"] for trial in by_status["failed"])
    assert all(len(trial["losses"]) == 4 and trial["starts"] == 1 for trial in by_status["completed"])
    best = min(by_status["completed"], key=lambda trial: trial["losses"][-1])
    assert summary["best"]["trial"] == best["trial"] and best["parameters"]["train.learning_rate"] == 1e-2
    assert (run / "sweep.html").read_text().startswith("<!doctype html>")
    assert "held-out loss by batch and learning rate" in swept.out and "Traceback" not in swept.err


def test_tokens_are_curated_once_and_trials_can_be_verified(swept: Result, head: Head, folder: Path) -> None:
    run = folder / "runs/sweep"
    assert len(list(run.glob("data/ledger/all-*/chunks/*.json"))) > 1
    assert [path.name for path in run.glob("trials/*/data/*")] == ["fingerprint.json"] * 2
    name = swept.summary["best"]["trial"]
    verified = pipeline("verify", str(run / "trials" / name), "--recompute", "0:2", env=head.env)
    assert verified.code == 0, verified.out + verified.err


def test_mlflow_has_the_sweep_and_its_trials_below_it(swept: Result, folder: Path) -> None:
    found = mlflow_runs(folder / "runs")
    assert found["sweep"] == ("FINISHED", None)
    assert {found[t["trial"]] for t in swept.summary["trials"] if t["status"] == "completed"} == {("FINISHED", "sweep")}
    with sqlite3.connect(folder / "runs/mlflow.db") as base:
        values = dict(base.execute("select r.name, m.value from latest_metrics m join runs r using (run_uuid)"
                                   " where m.key = 'sweep/loss'"))  # fmt: skip
        artifacts = [path.name for path in (folder / "runs/mlflow-artifacts").rglob("*")]
    best = swept.summary["best"]
    assert len(values) == 2 and values[best["trial"]] == pytest.approx(best["loss"], rel=1e-6)
    assert {"sweep.html", "best.yaml"} <= set(artifacts)


def test_the_same_command_runs_nothing_again(swept: Result, head: Head, folder: Path) -> None:
    before = records(folder / "runs/sweep")
    again = pipeline("tune", "--config", str(folder / "tiny.yaml"), "run.name=sweep", SPACE, env=head.env)
    assert again.code == 0 and again.summary["best"] == swept.summary["best"], again.out + again.err
    assert records(folder / "runs/sweep") == before


def test_the_best_config_trains_unchanged_to_the_same_loss(swept: Result, head: Head, folder: Path) -> None:
    done = pipeline("pretrain", "--config", str(folder / "runs/sweep/best.yaml"), env=head.env)
    assert done.code == 0, done.out + done.err
    assert done.summary["val_loss"] == pytest.approx(swept.summary["best"]["loss"], rel=1e-5)
    assert done.summary["tokens"] == swept.summary["tokens_of_a_trial"]
    assert not (folder / "runs/tiny-best/data/ledger").exists()  # it read the sweep's


# ----------------------------------------------------------------------------------------------------------- kills


def start(config: Path, head: Head, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.tune", "--config", str(config), *arguments],
        env={**os.environ, **head.env}, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


def wait_for(found: Any, process: subprocess.Popen[bytes], timeout_s: float = 400) -> None:
    deadline = time.time() + timeout_s
    while not found():
        assert process.poll() is None and time.time() < deadline, "the sweep ended before it was disturbed"
        time.sleep(0.2)


def test_a_sweep_whose_driver_was_killed_goes_on_and_runs_no_finished_trial_twice(head: Head, tmp_path: Path) -> None:
    """Killed when one trial is over and another has a checkpoint behind it; compared with an undisturbed sweep."""
    space = "sweep.space=[{field: train.learning_rate, values: [3e-4, 1e-3, 3e-3, 1e-2]}]"
    config = sweep_file(tmp_path, steps=200, max_concurrent_trials=1)
    reference = pipeline("tune", "--config", str(config), "run.name=whole", space, env=head.env, timeout_s=2400)
    assert reference.code == 0, reference.out + reference.err
    run = tmp_path / "runs/killed"
    process = start(config, head, "run.name=killed", space)

    def is_half_way() -> bool:
        found = records(run).values()
        return any(p["status"] == "completed" for p in found) and any(
            p["status"] == "running" and 1 <= len(p["reports"]) <= 2 for p in found
        )

    wait_for(is_half_way, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = records(run)
    done = {name for name, progress in before.items() if progress["status"] == "completed"}
    (running,) = [name for name, progress in before.items() if progress["status"] == "running"]
    again = pipeline("tune", "--config", str(config), "run.name=killed", space, env=head.env, timeout_s=2400)
    assert again.code == 0, again.out + again.err
    after = records(run)
    assert all(after[name] == before[name] and after[name]["starts"] == 1 for name in done)
    assert after[running]["starts"] == 2
    first = json.loads((run / "trials" / running / "starts.json").read_text())
    assert first[0]["step"] == 0 and first[-1]["step"] > 0  # it went on from a checkpoint
    assert again.summary["best"]["parameters"] == reference.summary["best"]["parameters"]
    for mine, other in zip(again.summary["trials"], reference.summary["trials"], strict=True):
        assert mine["trial"] == other["trial"] and mine["losses"] == pytest.approx(other["losses"], rel=1e-4)


def test_a_trial_that_diverges_is_reported_and_the_others_go_on(head: Head, tmp_path: Path) -> None:
    space = "sweep.space=[{field: train.learning_rate, values: [1e30, 1e-2]}]"
    more = ["stability.on_nonfinite=stop", "train.clip_norm=1e30"]
    done = pipeline("tune", "--config", str(sweep_file(tmp_path)), space, *more, env=head.env)
    assert done.code == 0, done.out + done.err
    by_rate = {trial["parameters"]["train.learning_rate"]: trial for trial in done.summary["trials"]}
    bad, good = by_rate[1e30], by_rate[1e-2]
    assert good["status"] == "completed" and math.isfinite(good["losses"][-1])
    assert bad["status"] == "failed" and "not finite" in bad["message"]
    assert mlflow_runs(tmp_path / "runs")[bad["trial"]][0] == "FAILED"
