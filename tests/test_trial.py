"""A trial's driver without a cluster: what is on record before anyone is told, and how a verdict is obeyed.

    python -m pytest -q tests/test_trial.py
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.driver import trial as driver
from pipelines.driver.cli import Cluster
from pipelines.driver.trial import TrialConsole, TrialTask, run_trial
from pretrainer.errors import ConfigError, LeaseError, StorageError
from pretrainer.lease import hold
from pretrainer.storage import Store
from pretrainer.tuning.records import Progress, Records, Trial
from pretrainer.tuning.space import BATCH, LEARNING_RATE
from tests.tuning.sweeps import sweep_config

PARAMETERS = {BATCH: 2048, LEARNING_RATE: 6e-3}


class Actor:
    """A recorder: every call is kept."""

    def __init__(self, calls: list[Any]) -> None:
        self.calls = calls

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *a: self.calls.append((name, *a)))


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(Store(str(tmp_path / "sweep")))


@pytest.fixture
def trial(records: Records) -> Trial:
    return records.add(0, PARAMETERS)


@pytest.fixture
def task(records: Records) -> TrialTask:
    return TrialTask(sweep_config(), records.sweep.uri, Cluster(2.0, 0.0, 1, None, True), "sqlite:///x.db", "parent")


def console_of(records: Records, trial: Trial, task: TrialTask, calls: list[Any]) -> TrialConsole:
    console = TrialConsole(0.0, task.config_of(trial.name, trial.parameters), records, trial.name)
    console.recorder = Actor(calls)
    console.frozen = SimpleNamespace(  # type: ignore[assignment]
        held_out={n: SimpleNamespace(bytes=size, gzip_bits_per_byte=1.0, unigram_bits_per_byte=1.0)
                  for n, size in (("a", 300), ("b", 100))}, vocab_size=2048,
    )  # fmt: skip
    return console


def validation(step: int, loss_a: float = 3.0) -> dict[str, Any]:
    def values(loss: float, targets: int) -> dict[str, Any]:
        return {"loss": loss, "targets": targets, "bits_per_byte": loss / 2, "perplexity": 1.0}

    return {"kind": "validation", "step": step, "sources": {"a": values(loss_a, 90), "b": values(5.0, 10)}}


def test_a_report_is_on_record_before_tune_hears_it(
    records: Records, trial: Trial, task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    console = console_of(records, trial, task, calls)
    every = console.config.train.validate_every_steps
    seen: list[dict[str, Any]] = []

    def report(values: dict[str, Any]) -> None:
        seen.append(values)
        assert len(records.read(trial.name).losses) == len(seen)

    monkeypatch.setattr(driver.tune, "report", report)
    console.event({"kind": "look", "step": 5, "noise_scale_tokens": 3000.0, "batch_tokens": 2048, "looks": 1})
    for step in (0, every, every + 3, 2 * every):  # the first one is before training, the third one of a stop
        console.event(validation(step))
    assert [values["tokens"] for values in seen] == [every * 2048, 2 * every * 2048]
    assert seen[0]["loss"] == pytest.approx(0.9 * 3.0 + 0.1 * 5.0)  # by targets
    assert seen[0]["bits_per_byte"] == pytest.approx(0.75 * 1.5 + 0.25 * 2.5)  # by bytes
    progress = records.read(trial.name).progress
    assert progress.noise_scale_tokens == 3000.0 and progress.trained_tokens == 2 * every * 2048
    told = [call[1] for call in calls if call[0] == "record"]
    assert [event["kind"] for event in told] == ["report", "report"] and told[1]["loss"] == seen[1]["loss"]
    assert not [call for call in calls if call[0] == "request_stop"]
    assert "held out a: loss 3.0000" in records.folder(trial.name).read_text("console.log")


def test_a_verdict_stops_the_workers_after_the_report(
    records: Records, trial: Trial, task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    console = console_of(records, trial, task, calls)
    every = console.config.train.validate_every_steps
    monkeypatch.setattr(driver.tune, "report", lambda _values: records.condemn(trial.name, "too bad"))
    console.event(validation(every))
    assert calls[-1] == ("request_stop",)


def test_a_loss_that_is_not_finite_is_reported_as_infinite(
    records: Records, trial: Trial, task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = console_of(records, trial, task, [])
    monkeypatch.setattr(driver.tune, "report", lambda _values: None)
    console.event(validation(console.config.train.validate_every_steps, loss_a=math.nan))
    assert records.read(trial.name).losses == [math.inf]


def driven(trial: Trial, task: TrialTask, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(driver.tune, "report", told.append)
    run_trial({"name": trial.name}, task)
    return told


def test_a_trial_with_a_verdict_ends_without_training(
    records: Records, trial: Trial, task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    records.write(trial.name, Progress(trained_tokens=4096, starts=1))
    records.condemn(trial.name, "too bad")
    assert driven(trial, task, monkeypatch) == [{"status": "stopped"}]
    progress = records.read(trial.name).progress
    assert (progress.status, progress.message, progress.trained_tokens) == ("stopped", "too bad", 4096)


@pytest.mark.parametrize("error", [ConfigError("wrong value"), StorageError("disk full")])
def test_a_mistake_is_the_failure_of_this_trial_alone(
    error: Exception, records: Records, trial: Trial, task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(driver, "check", refuse)
    assert driven(trial, task, monkeypatch) == [{"status": "failed"}]
    progress = records.read(trial.name).progress
    assert (progress.status, progress.message, progress.starts) == ("failed", str(error), 1)


def test_an_unknown_error_goes_to_tune_which_tries_again(
    records: Records, trial: Trial, task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: Any) -> None:
        raise RuntimeError("the node is gone")

    monkeypatch.setattr(driver, "check", lose)
    with pytest.raises(RuntimeError):
        driven(trial, task, monkeypatch)
    assert not records.read(trial.name).progress.is_over


def test_a_trial_waits_for_the_driver_that_is_being_killed(
    records: Records, trial: Trial, task: TrialTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = records.folder(trial.name), task.config_of(trial.name, trial.parameters)
    slept: list[float] = []
    monkeypatch.setattr(driver.time, "sleep", slept.append)
    monkeypatch.setattr(driver, "LEASE_PATIENCE_S", -1.0)
    with hold(run, "another", 10.0, 60.0), pytest.raises(LeaseError):
        driver._lease(run, config)
    monkeypatch.setattr(driver, "LEASE_PATIENCE_S", 90.0)
    with hold(run, "another", 10.0, 60.0) as other:
        monkeypatch.setattr(driver.time, "sleep", lambda _s: other.release())
        found = driver._lease(run, config)
    assert found.claim.number > other.claim.number


def test_what_a_trial_is_for_mlflow_and_where_its_tokens_are(trial: Trial, task: TrialTask) -> None:
    config = task.config_of(trial.name, trial.parameters)
    assert config.tracking.uri == "sqlite:///x.db" and config.run.data_from == task.sweep_uri
    assert Store(config.run.storage).child(config.run.name).uri == Records(Store(task.sweep_uri)).folder(trial.name).uri
