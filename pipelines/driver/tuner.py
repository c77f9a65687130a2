"""Ray Tune as the shell around a sweep: it starts drivers, limits how many, and asks; records in storage answer.

    RecordSearch       which trial comes next: first those that an earlier start left unfinished, then new ones
    RecordScheduler    whether a trial that has reported must end
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.schedulers.trial_scheduler import TrialScheduler
from ray.tune.search import Searcher

from pipelines.driver.trial import TrialTask, run_trial
from pretrainer.config import SweepConfig
from pretrainer.errors import ConfigError
from pretrainer.storage import Store
from pretrainer.tuning.records import FAILED, Progress, Records, Trial
from pretrainer.tuning.schedulers import decide
from pretrainer.tuning.space import count_trials, next_parameters

DRIVER_CPUS = 0.01
"""A trial's driver only waits; its workers and its data ask for CPUs of their own. One whole CPU for each driver, the
default of Tune, leaves none for them on a small cluster (ray-project/ray#54305)."""

Tell = Callable[[str, Trial], None]
"""(what happened, to which trial): start, report, end."""


class Board:
    """The trials of a sweep as its driver sees them; read from storage once, then trial by trial."""

    def __init__(self, records: Records, sweep: SweepConfig) -> None:
        self.records, self.sweep = records, sweep
        self.trials = {trial.name: trial for trial in records.trials()}
        for trial in list(self.trials.values()):
            if self._goes_on(trial):
                records.pardon(trial.name)
                self.refresh(trial.name)

    def _goes_on(self, trial: Trial) -> bool:
        if trial.progress.status == FAILED:
            return self.sweep.retry_failed
        return trial.verdict is not None and self.sweep.scheduler == "none" and trial.progress.status != "completed"

    def refresh(self, name: str) -> Trial:
        self.trials[name] = self.records.read(name)
        return self.trials[name]

    def write(self, name: str, progress: Progress) -> Trial:
        self.records.write(name, progress)
        return self.refresh(name)

    @property
    def all(self) -> list[Trial]:
        return sorted(self.trials.values(), key=lambda trial: trial.number)

    @property
    def unfinished(self) -> list[str]:
        return [trial.name for trial in self.all if not trial.progress.is_over]

    @property
    def left(self) -> int:
        """How many trials are to be started, new ones included."""
        return len(self.unfinished) + max(0, count_trials(self.sweep) - len(self.trials))


class RecordSearch(Searcher):
    """Names of trials, one at a time; their parameters are on record before they start."""

    def __init__(self, board: Board, task: TrialTask, tell: Tell) -> None:
        super().__init__()
        self.board, self.task, self.tell = board, task, tell
        self.waiting = board.unfinished
        self.names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        name = self.waiting.pop(0) if self.waiting else self._new()
        if name is None:
            return Searcher.FINISHED
        self.names[trial_id] = name
        self.tell("start", self.board.trials[name])
        return {"name": name}

    def _new(self) -> str | None:
        """A new trial that can be; one that cannot has failed already, with its reason."""
        while True:
            parameters = next_parameters(self.board.sweep, [trial.known for trial in self.board.all])
            if parameters is None:
                return None
            trial = self.board.records.add(len(self.board.trials), parameters)
            self.board.trials[trial.name] = trial
            try:
                self.task.config_of(trial.name, parameters)
            except ConfigError as error:
                self.tell("end", self.board.write(trial.name, trial.progress.failed(str(error))))
            else:
                return trial.name

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self.board.refresh(self.names[trial_id])
        if error and not trial.progress.is_over:
            message = "its driver was lost, more often than sweep.max_failures allows; its log is in the Ray dashboard"
            trial = self.board.write(trial.name, trial.progress.failed(message))
        self.tell("end", trial)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """The scheduler hears it too."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what a resumed sweep needs is in its records."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on from its records")


class RecordScheduler(FIFOScheduler):
    """Writes verdicts down; the trial reads its own when it goes on, saves a checkpoint and ends by itself.

    `TrialScheduler.STOP` would kill the trial's driver instead, which leaves the reservation of its workers and its
    MLflow run open (seen in Ray 2.60).
    """

    def __init__(self, board: Board, tell: Tell) -> None:
        super().__init__()
        self.board, self.tell = board, tell

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        name = trial.config["name"]
        mine = self.board.refresh(name)
        if not mine.progress.is_over and mine.verdict is None:
            others = [other.losses for other in self.board.all if other.name != name]
            reason = decide(self.board.sweep, mine.losses, others)
            if reason is not None:
                self.board.records.condemn(name, reason)
                mine = self.board.refresh(name)
        if result.get("status") == "running":
            self.tell("report", mine)
        return TrialScheduler.CONTINUE


def search(board: Board, task: TrialTask, tell: Tell) -> None:
    """Run what is left of a sweep; returns when nothing is."""
    if not board.left:
        return
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables say what ours say
    path, filesystem = Store(task.sweep_uri).child("tune").train_storage()
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, task=task), {"CPU": DRIVER_CPUS}),
        tune_config=tune.TuneConfig(
            search_alg=RecordSearch(board, task, tell),
            scheduler=RecordScheduler(board, tell),
            num_samples=board.left,
            max_concurrent_trials=board.sweep.max_concurrent_trials,
        ),
        run_config=tune.RunConfig(
            # Of its own for each start: what Tune remembers of an earlier one is not asked.
            name=time.strftime("start-%Y%m%d-%H%M%S", time.gmtime()),
            storage_path=path,
            storage_filesystem=filesystem,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=board.sweep.max_failures),
        ),
    )
    tuner.fit()
