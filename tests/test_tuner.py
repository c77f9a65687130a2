"""The shell of a sweep without a cluster: who is started, who is told to end, and that nothing is started twice.

    python -m pytest -q tests/test_tuner.py
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers.trial_scheduler import TrialScheduler
from ray.tune.search import Searcher

from pipelines.driver.cli import Cluster
from pipelines.driver.preflight import check_concurrency
from pipelines.driver.sweep_results import best_config, best_text, finish_sweep
from pipelines.driver.trial import TrialTask
from pipelines.driver.tuner import Board, RecordScheduler, RecordSearch
from pretrainer.config import Config
from pretrainer.config_load import parse_config
from pretrainer.errors import ConfigError, TrackingError
from pretrainer.storage import Store
from pretrainer.tuning.records import Progress, Records, Report, Trial
from pretrainer.tuning.space import BATCH, LEARNING_RATE, total_tokens
from tests.tuning.sweeps import RATES, finished, sweep, sweep_config

THERE = Cluster(2.0, 0.0, 1, None, True)


class Told(list[tuple[str, str]]):
    def __call__(self, kind: str, trial: Trial) -> None:
        self.append((kind, trial.name))


Parts = tuple[Board, RecordSearch, RecordScheduler, Told]


def parts(tmp_path: Path, *overrides: str, space: str | None = None) -> Parts:
    config = sweep_config(*overrides, **({"space": space} if space else {}))
    store = Store(str(tmp_path / "sweep"))
    board, told = Board(Records(store), config.sweep), Told()
    task = TrialTask(config, store.uri, THERE, "sqlite:///x.db", "parent")
    return board, RecordSearch(board, task, told), RecordScheduler(board, told), told


def started(search: RecordSearch) -> list[str]:
    """Every trial that Tune would start."""
    names: list[str] = []
    while isinstance(found := search.suggest(f"t{len(names)}"), dict):
        names.append(found["name"])
    assert found == Searcher.FINISHED
    return names


def ended(board: Board, name: str, status: str, loss: float = 3.0, at: int = 8) -> None:
    reports = tuple(Report(n, n * 100, loss, 1.0) for n in range(1, at + 1))
    board.records.write(name, Progress(status, reports=reports, starts=1))


def test_a_new_sweep_starts_every_trial_once_and_has_it_on_record_before(tmp_path: Path) -> None:
    board, search, _scheduler, told = parts(tmp_path)
    assert board.left == 12
    names = started(search)
    assert len(set(names)) == 12 and names == [trial.name for trial in board.records.trials()]
    assert told == [("start", name) for name in names]


def test_what_is_over_is_not_started_again_and_what_is_not_comes_first(tmp_path: Path) -> None:
    board, search, *_ = parts(tmp_path)
    names = [search.suggest(f"t{n}")["name"] for n in range(5)]
    for name, status in zip(names, ("completed", "failed", "stopped", "running", "running"), strict=True):
        ended(board, name, status)
    board.records.condemn(names[2], "bad")
    board, search, *_ = parts(tmp_path, "sweep.scheduler=asha")
    assert board.left == 9 and board.unfinished == names[3:]
    again = started(search)
    assert again[:2] == names[3:] and len(again) == 9 and not {*names[:3]} & {*again}


def test_without_a_scheduler_trials_that_were_ended_early_go_on(tmp_path: Path) -> None:
    board, search, *_ = parts(tmp_path, "sweep.scheduler=asha")
    name = search.suggest("t")["name"]
    ended(board, name, "stopped", at=2)
    board.records.condemn(name, "bad")
    board, search, *_ = parts(tmp_path)
    assert board.unfinished == [name] and board.records.read(name).verdict is None
    assert search.suggest("t") == {"name": name}


def test_failed_trials_are_tried_again_when_that_is_asked(tmp_path: Path) -> None:
    board, search, *_ = parts(tmp_path)
    name = search.suggest("t")["name"]
    ended(board, name, "failed")
    assert name not in started(parts(tmp_path)[1])
    assert parts(tmp_path, "sweep.retry_failed=true")[1].suggest("t") == {"name": name}


def test_a_trial_that_cannot_be_fails_with_its_reason_and_the_others_start(tmp_path: Path) -> None:
    space = "[{field: train.global_batch_tokens, values: [1024, 1500, 2048]}]"
    board, search, _scheduler, told = parts(tmp_path, space=space)
    names = started(search)
    assert len(names) == 2
    (bad,) = [trial for trial in board.all if trial.progress.status == "failed"]
    assert "multiple of" in bad.progress.message and ("end", bad.name) in told and bad.progress.starts == 0


def test_a_driver_that_is_lost_for_good_is_a_failed_trial(tmp_path: Path) -> None:
    board, search, _scheduler, told = parts(tmp_path)
    lost, done = (search.suggest(f"t{n}")["name"] for n in range(2))
    ended(board, done, "completed")
    search.on_trial_complete("t0", None, error=True)
    search.on_trial_complete("t1", {}, error=True)  # it was on record before its driver was lost
    gone = board.records.read(lost).progress
    assert gone.status == "failed" and "driver" in gone.message
    assert board.records.read(done).progress.status == "completed" and told[-2:] == [("end", lost), ("end", done)]


def reported(board: Board, scheduler: RecordScheduler, name: str, *losses: float) -> str:
    reports = tuple(Report(n, n * 100, loss, 1.0) for n, loss in enumerate(losses, start=1))
    board.records.write(name, Progress(reports=reports))
    return scheduler.on_trial_result(None, SimpleNamespace(config={"name": name}), {"status": "running"})


def test_a_verdict_is_on_record_when_tune_lets_the_trial_go_on(tmp_path: Path) -> None:
    board, search, scheduler, told = parts(tmp_path, "sweep.scheduler=asha")
    good, bad = (search.suggest(f"t{n}")["name"] for n in range(2))
    for name, losses in ((good, (5.0, 4.0)), (bad, (5.0, 4.5))):
        assert reported(board, scheduler, name, *losses[:1]) == TrialScheduler.CONTINUE
        assert reported(board, scheduler, name, *losses) == TrialScheduler.CONTINUE
    assert board.records.read(good).verdict is None
    assert "4.5000" in (board.records.read(bad).verdict or "")
    assert told.count(("report", bad)) == 2


def test_verdicts_after_a_restart_know_the_trials_before_it(tmp_path: Path) -> None:
    board, search, *_ = parts(tmp_path, "sweep.scheduler=asha")
    ended(board, search.suggest("t")["name"], "completed", loss=3.0)
    board, search, scheduler, _told = parts(tmp_path, "sweep.scheduler=asha")
    worse = search.suggest("t")["name"]
    reported(board, scheduler, worse, 3.5, 3.5)
    assert board.records.read(worse).verdict is not None


def test_optuna_hears_what_was_found_before_a_restart(tmp_path: Path) -> None:
    space = "[{field: train.learning_rate, low: 1e-4, high: 1e-1}]"
    more = ("sweep.search=optuna", "sweep.trials=12")
    board, search, *_ = parts(tmp_path, *more, space=space)
    for number in range(10):
        ended(board, search.suggest(f"t{number}")["name"], "completed", loss=3.0 + number)
        search.on_trial_complete(f"t{number}", {})
    here = search.suggest("next")["name"]
    board.records.folder(here).delete("trial.json")
    assert parts(tmp_path, *more, space=space)[1].suggest("next") == {"name": here}


def test_tune_has_the_hooks_that_are_used() -> None:
    """Ray 2.60: a report of a trial comes back only after its result was given to the scheduler."""
    assert {"suggest", "on_trial_complete"} <= {name for name, _ in inspect.getmembers(Searcher)}
    assert {"max_concurrent_trials", "search_alg", "scheduler"} <= set(inspect.signature(tune.TuneConfig).parameters)


# ------------------------------------------------------------------------------------------------------- preflight


def test_trials_at_the_same_time_must_have_their_cpus() -> None:
    check_concurrency(sweep_config("sweep.max_concurrent_trials=1"), THERE)
    with pytest.raises(ConfigError, match="use at most 1"):
        check_concurrency(sweep_config("sweep.max_concurrent_trials=2"), THERE)
    small = ("train.cpus_per_worker=0.2", "data.read_cpus=0.05", "sweep.max_concurrent_trials=2")
    check_concurrency(sweep_config(*small), THERE)
    wide = "[{field: train.num_workers, values: [1, 8]}]"
    with pytest.raises(ConfigError, match="8 workers"):
        check_concurrency(sweep_config(*small, space=wide), THERE)
    check_concurrency(sweep_config("sweep.max_concurrent_trials=2", "cluster.autoscaling=true"), THERE)


def test_small_trials_share_a_gpu() -> None:
    there = Cluster(64.0, 2.0, 1, None, False)
    check_concurrency(sweep_config("train.num_workers=1", "sweep.max_concurrent_trials=2"), there)
    with pytest.raises(ConfigError, match="needs 1 GPUs and the cluster has 2: use at most 2"):
        check_concurrency(sweep_config("train.num_workers=1", "sweep.max_concurrent_trials=3"), there)
    quarter = ("train.num_workers=1", "train.gpus_per_worker=0.25")
    check_concurrency(sweep_config(*quarter, "sweep.max_concurrent_trials=8"), there)
    with pytest.raises(ConfigError, match="use at most 8"):
        check_concurrency(sweep_config(*quarter, "sweep.max_concurrent_trials=9"), there)
    with pytest.raises(ConfigError, match="NCCL"):
        sweep_config("train.gpus_per_worker=0.5")  # the quickstart has two workers
    with pytest.raises(ConfigError, match="gpus_per_worker"):
        sweep_config("train.num_workers=1", "train.gpus_per_worker=2")


# ------------------------------------------------------------------------------------------------------- the result


class DeafTracker:
    """MLflow is out of reach: the result must not need it."""

    uri, run_id = "sqlite:///x.db", "parent"

    def __init__(self) -> None:
        self.ends: list[tuple[str, set[str]]] = []

    def log(self, values: Any) -> None:
        assert all(isinstance(value, float) for _name, value, _step in values)

    def finish(self, status: str, artifacts: dict[str, Any]) -> None:
        self.ends.append((status, set(artifacts)))


class Silent:
    def say(self, text: str = "") -> None:
        self.last = text


def finish(config: Config, run: Store, trials: list[Trial]) -> tuple[int, DeafTracker]:
    tracker = DeafTracker()
    code = finish_sweep(config, run, SimpleNamespace(vocab_size=2048), trials, tracker, Silent())  # type: ignore[arg-type]
    return code, tracker


def test_the_best_config_is_a_delta_that_loads(tmp_path: Path) -> None:
    config, run = sweep_config(), Store(str(tmp_path / "sweep"))
    code, tracker = finish(config, run, finished(config))
    assert code == 0 and tracker.ends == [("completed", {"sweep.html", "best.yaml", "summary.json", "result.txt"})]
    text = run.read_text("best.yaml")
    best = parse_config(text)
    assert best.train.learning_rate == 6e-3 and best.train.global_batch_tokens == 1024
    assert best.total_steps * 1024 == total_tokens(config)
    assert best.train.warmup_ratio == pytest.approx(60 / 700, rel=1e-3)
    assert best.run.name == "quickstart-best" and best.run.data_from == run.uri and best.sweep.space == ()
    assert best.model == config.model and best.data == config.data and "threads_per_worker: 1" in text
    assert "# The fitted optimum of its batch is a learning rate of 0.00566" in text
    assert "beta1" not in text  # a delta


def test_the_best_config_is_what_the_trial_trained(tmp_path: Path) -> None:
    config, run = sweep_config(), Store(str(tmp_path / "sweep"))
    found = sweep(config, finished(config))
    task = TrialTask(config, run.uri, THERE, "sqlite:///x.db", "parent")
    assert found.winner is not None
    trained, best = task.config_of(found.winner.name, found.winner.parameters).train, best_config(found, run).train
    same = ("learning_rate", "global_batch_tokens", "warmup_ratio", "warmup_steps", "schedule", "min_lr_ratio", "beta2")
    assert [getattr(trained, name) for name in same] == [getattr(best, name) for name in same]
    assert trained.steps == -(-(best.tokens or 0) // best.global_batch_tokens)
    assert best_text(found, run).startswith("# The best of 12 trials")


def test_a_sweep_with_trials_left_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = sweep_config(), Store(str(tmp_path / "sweep"))
    trials = finished(config)
    trials[0] = replace(trials[0], progress=replace(trials[0].progress, status="running"))
    code, tracker = finish(config, run, trials)
    assert code == 1 and tracker.ends[0][0] == "stopped" and "1 trials are not over" in capsys.readouterr().err


def test_a_sweep_of_failures_fails_without_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, run = sweep_config(space=f"[{RATES}]"), Store(str(tmp_path / "sweep"))
    trial = replace(finished(config)[0], parameters={LEARNING_RATE: 2e-3, BATCH: 2048},
                    progress=Progress("failed", "out of memory"))  # fmt: skip
    code, tracker = finish(config, run, [trial])
    assert code == 1 and tracker.ends[0] == ("failed", {"sweep.html", "summary.json", "result.txt"})
    assert not run.exists("best.yaml") and "no trial went to its end" in capsys.readouterr().err


def test_a_sweep_goes_on_without_mlflow(tmp_path: Path) -> None:
    from pipelines.driver.sweep_results import SweepTracker

    class Away:
        def log_metrics(self, *_: Any) -> None:
            raise TrackingError("away")

        finish = log_metrics

    tracker = SweepTracker(Away(), "uri", "id")  # type: ignore[arg-type]
    tracker.log([("sweep/best_loss", 1.0, 1)])
    tracker.finish("completed", {})
