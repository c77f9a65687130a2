"""Storage decides what is done and what is left."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from pretrainer.errors import ConfigError, StorageError
from pretrainer.storage import Store
from pretrainer.tuning.records import Progress, Records, Report
from pretrainer.tuning.space import BATCH, LEARNING_RATE
from tests.tuning.sweeps import BATCHES, RATES, sweep_config

PARAMETERS = {BATCH: 2048, LEARNING_RATE: 6e-3}


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(Store(str(tmp_path / "sweep")))


def test_a_trial_is_read_back_as_it_was_written(records: Records) -> None:
    added = records.add(3, PARAMETERS)
    assert records.read(added.name) == added and not added.progress.is_over
    progress = Progress("completed", "", (Report(8, 64, 3.5, 1.5), Report(16, 128, math.inf, 1.4)), 512.5, 128, 3.0, 2)
    records.write(added.name, progress)
    found = records.read(added.name)
    assert found.progress == progress and found.losses == [3.5, math.inf] and found.tokens == 128
    assert found.parameters == PARAMETERS and found.number == 3


def test_trials_come_by_number(records: Records) -> None:
    for number, rate in ((2, 6e-3), (0, 2e-3), (10, 1e-3), (1, 54e-3)):
        records.add(number, {LEARNING_RATE: rate})
    assert [trial.number for trial in records.trials()] == [0, 1, 2, 10]


def test_the_same_trial_is_not_made_twice_with_other_values(records: Records) -> None:
    added = records.add(0, {LEARNING_RATE: 1e-3})
    with pytest.raises(StorageError):
        records.folder(added.name).create("trial.json", b"{}")


def test_a_report_that_is_seen_again_is_counted_once() -> None:
    progress = Progress().with_report(Report(16, 128, 3.0, 1.0)).with_report(Report(8, 64, 4.0, 1.0))
    again = progress.with_report(Report(16, 128, 2.9, 1.0))
    assert [report.step for report in again.reports] == [8, 16] and again.reports[1].loss == 2.9


def test_what_is_over() -> None:
    statuses = ("running", "completed", "stopped", "failed")
    assert [Progress(status).is_over for status in statuses] == [False, True, True, True]


def test_a_verdict_alone_does_not_end_a_trial_and_a_pardon_takes_it_back(records: Records) -> None:
    name = records.add(0, PARAMETERS).name
    records.condemn(name, "too bad")
    assert records.read(name).verdict == "too bad" and not records.read(name).progress.is_over
    records.write(name, Progress("stopped", "too bad", (Report(8, 64, 4.0, 1.0),), starts=1))
    records.pardon(name)
    found = records.read(name)
    assert found.verdict is None and not found.progress.is_over and found.losses == [4.0] and found.progress.starts == 1


def test_what_the_search_hears(records: Records) -> None:
    trial = records.add(0, PARAMETERS)
    reports = (Report(8, 64, 4.0, 1.0),)

    def known(progress: Progress) -> tuple[float | None, bool]:
        found = replace(trial, progress=progress).known
        return found.loss, found.is_over

    assert known(Progress("running", reports=reports)) == (None, False)
    assert known(Progress("completed", reports=reports)) == known(Progress("stopped", reports=reports)) == (4.0, True)
    assert known(Progress("failed", reports=reports)) == (None, True)
    assert known(Progress("completed", reports=(Report(8, 64, math.inf, 1.0),))) == (None, True)


def test_a_sweep_goes_on_only_with_what_keeps_trials_comparable(records: Records) -> None:
    records.begin(sweep_config())
    for harmless in ("sweep.scheduler=asha", "sweep.max_concurrent_trials=2", "train.num_workers=1",
                     "train.cpus_per_worker=0.3", "run.name=other", "train.checkpoint_every_steps=50"):  # fmt: skip
        records.begin(sweep_config(harmless))
    wider = RATES.replace("2e-3", "1e-3, 2e-3")
    records.begin(sweep_config(space=f"[{BATCHES}, {wider}]"))
    for other in ("train.weight_decay=0.2", "model.layers=3", "sweep.reports=4", "train.steps=1400", "run.seed=1",
                  "data.order_seed=1"):  # fmt: skip
        with pytest.raises(ConfigError, match="not be comparable") as error:
            records.begin(sweep_config(other))
        name = other.partition("=")[0]
        assert (name if name != "train.steps" else "tokens was") in str(error.value)
