"""Milestones, the best and a second storage: what is copied, what stays, and what a failed copy leaves.

python -m pytest -q tests/train/checkpoints/test_copies.py
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.driver.checkpoints import checkpoint_folder
from pretrainer.config import Config, EvaluationConfig, TaskConfig
from pretrainer.errors import ConfigError, DamagedError
from pretrainer.pooled import pooled_loss
from pretrainer.storage import Store
from pretrainer.train.checkpoints import copies
from pretrainer.train.checkpoints.committed import SNAPSHOT, drop_damaged, folder_name
from pretrainer.train.checkpoints.copies import Copies, copy_folder
from tests.train.specs import worker_spec


@pytest.fixture
def run(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "runs/one"))


def commit(run: Store, *steps: int) -> None:
    """These steps are the committed ones, each with two files of its own."""
    for step in steps:
        files = {name: f"{name} of {step}".encode() * 1000 for name in ("__0_0.distcp", ".metadata")}
        for name, data in files.items():
            run.write(f"checkpoints/{folder_name(step, 0)}/{name}", data)
        digests = {name: {"sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
        run.write(f"checkpoints/{folder_name(step, 0)}/digests.rank0.json", json.dumps({"files": digests}).encode())
    results = [{"checkpoint_dir_name": folder_name(step, 0), "metrics": {"step": step}} for step in steps]
    snapshot = {"checkpoint_results": results, "latest_checkpoint_result": results[-1]}
    lists = {"checkpoint_report_indices": list(steps), "pending_training_results": [], "pending_validation_specs": []}
    run.write(SNAPSHOT, json.dumps({**snapshot, **lists}).encode())


def config(copy_to: str | None = None, **train: Any) -> Config:
    spec = worker_spec()
    cadence = {"checkpoint_every_steps": 10, "validate_every_steps": 10}
    train = {**cadence, **train}
    return replace(spec.config, run=replace(spec.config.run, name="one", copy_to=copy_to),
                   train=replace(spec.config.train, **train))  # fmt: skip


def validation(step: int, **losses: float) -> dict[str, Any]:
    sources = {name: {"loss": loss, "targets": 100} for name, loss in losses.items()}
    return {"kind": "validation", "step": step, "sources": sources}


def train(run: Store, asked: Config, losses: dict[int, float], keep: int = 2) -> list[dict[str, Any]]:
    """What is told while a run has checkpoints of these held-out losses, of which Ray keeps the newest."""
    told: list[dict[str, Any]] = []
    made, steps = Copies(asked, run, told.append), list(losses)
    for index, step in enumerate(steps):
        commit(run, *steps[max(0, index + 1 - keep) : index + 1])
        made.notice(validation(step, web=losses[step]))
        made.notice({"kind": "checkpoint", "step": step})
        assert made.drain(10)
    return told


def folders(store: Store) -> list[str]:
    return sorted({path.split("/")[0] for path, *_ in store.list() if "/" in path})


LOSSES = {0: 9.0, 10: 5.0, 20: 3.0, 30: 4.0, 40: 3.5}


def test_milestones_stay_and_the_best_is_one(run: Store) -> None:
    told = train(run, config(milestone_every_steps=20, keep_best=True), LOSSES)
    assert folders(run.child("milestones")) == [folder_name(20, 0), folder_name(40, 0)]
    assert folders(run.child("best")) == [folder_name(20, 0)]
    assert json.loads(run.read(f"best/{folder_name(20, 0)}.json"))["value"] == 3.0
    assert {event["kind"] for event in told} == {"copy"}
    original, copy = (run.child(f"{place}/{folder_name(20, 0)}") for place in ("checkpoints", "milestones"))
    assert [original.read(path) == copy.read(path) for path, *_ in original.list()] == [True] * 3


def test_the_second_storage_has_the_newest(run: Store, s3_uri: str) -> None:
    train(run, config(copy_to=s3_uri), LOSSES)
    there = Store(s3_uri).child("one/checkpoints")
    assert folders(there) == [folder_name(step, 0) for step in (20, 30, 40)]  # train.keep_checkpoints


def test_the_loss_of_the_best_counts_targets_and_outlives_the_driver(run: Store) -> None:
    sources = {"a": {"loss": 2.0, "targets": 300}, "b": {"loss": 6.0, "targets": 100}}
    assert pooled_loss(sources) == 3.0
    train(run, config(keep_best=True), {10: 3.0})
    train(run, config(keep_best=True), {20: 3.5})
    assert folders(run.child("best")) == [folder_name(10, 0)]


def scores(step: int, value: float) -> dict[str, Any]:
    return {"kind": "evaluation", "step": step, "tasks": {"arc": {"metrics": {"acc": {"value": value}}}}}


def test_the_best_by_a_task_s_metric_is_copied_whenever_its_score_comes(run: Store) -> None:
    """Scores of the workers come before the checkpoint, those of a task beside them after it."""
    task = TaskConfig(name="arc", uri="arc.jsonl", kind="arc")
    asked = config(keep_best=True)
    asked = replace(asked, evaluation=EvaluationConfig(tasks=(task,), best_by="arc/acc", full_every_steps=10))
    made = Copies(asked, run, print)
    commit(run, 10, 20, 30, 40)
    for step, value, before in ((10, 0.3, True), (20, 0.5, False), (30, 0.5, True), (40, 0.4, False)):
        made.notice(validation(step, web=1.0 / step))  # says nothing here
        both = [scores(step, value), {"kind": "checkpoint", "step": step}]
        for event in both if before else reversed(both):
            made.notice(event)
        assert made.drain(10)
        assert folders(run.child("best")) == [folder_name(10 if step == 10 else 20, 0)]
    assert json.loads(run.read(f"best/{folder_name(20, 0)}.json"))["value"] == 0.5
    assert Copies(asked, run, print).best == 0.5


def test_a_milestone_that_a_driver_did_not_come_to_copy_is_copied_by_the_next(run: Store) -> None:
    commit(run, 20, 30)
    made = Copies(config(milestone_every_steps=20), run, print)
    assert made.drain(10) and folders(run.child("milestones")) == [folder_name(20, 0)]
    assert checkpoint_folder(run, 30) == f"checkpoints/{folder_name(30, 0)}"
    drop_damaged(run, folder_name(20, 0))
    assert checkpoint_folder(run, 20) == f"milestones/{folder_name(20, 0)}"


def test_a_milestone_whose_event_was_lost_is_copied_when_the_workers_begin_after_it(run: Store) -> None:
    made = Copies(config(milestone_every_steps=20), run, print)
    commit(run, 10, 20)
    for step in (0, 10, 20):
        made.notice({"kind": "start", "step": step})
    assert made.drain(10) and list(copies.find_copies(run)) == [20]


def test_a_list_that_is_being_written_is_read_again(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    made = Copies(config(milestone_every_steps=20), run, told.append)
    commit(run, 20)
    whole = run.read(SNAPSHOT)
    run.write(SNAPSHOT, whole[:50])
    monkeypatch.setattr(copies.time, "sleep", lambda _s: run.write(SNAPSHOT, whole))
    made.notice({"kind": "checkpoint", "step": 20})
    made.jobs.join()
    assert [event["kind"] for event in told] == ["copy"]


def test_a_copy_that_fails_is_told_and_is_no_copy(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(run, 10, 20)
    run.write(f"checkpoints/{folder_name(20, 0)}/__0_0.distcp", b"other bytes")
    told: list[dict[str, Any]] = []
    made = Copies(config(milestone_every_steps=10), run, told.append)
    assert made.drain(10)
    assert [(event["kind"], event["step"]) for event in told] == [("copy", 10), ("copy_failed", 20)]
    assert "differs from its digest" in told[1]["message"]
    assert list(copies.find_copies(run)) == [10]
    monkeypatch.setattr(copies, "COMMIT_PATIENCE_S", 0.0)
    made.notice({"kind": "checkpoint", "step": 30})
    assert made.drain(10) and "not on the list" in told[2]["message"]


@pytest.mark.parametrize("lost", [".metadata", "digests.rank0.json"])
def test_a_folder_that_lacks_a_file_is_not_copied(run: Store, lost: str) -> None:
    commit(run, 10)
    source = run.child(f"checkpoints/{folder_name(10, 0)}")
    source.delete(lost)
    with pytest.raises(DamagedError, match="lacks"):
        copy_folder(source, run.child("there"))


def test_nothing_is_copied_unasked(run: Store) -> None:
    assert train(run, config(), LOSSES) == [] and folders(run) == ["checkpoints"]


@pytest.mark.parametrize("wrong", [{"milestone_every_steps": 15}, {"keep_best": True, "validate_every_steps": 20}])
def test_impossible_cadences_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"train\.(milestone_every_steps|keep_best)"):
        config(**wrong)
