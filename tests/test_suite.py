"""Scores of checkpoints while a run trains: the same as those of `pipelines.evaluate`, by whoever takes them.

    python -m pytest -q tests/test_suite.py
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
import torch

from pipelines import evaluate
from pipelines.driver import suite
from pipelines.driver.cli import Cluster
from pipelines.driver.evaluating import check_evaluation, evaluates_beside, evaluation_rows
from pipelines.driver.suite import Suite, context_of, evaluate_checkpoint, freeze_suite, validation_config
from pretrainer.config import Config, EvaluationConfig, TaskConfig
from pretrainer.config_load import parse_config, to_yaml
from pretrainer.errors import ConfigError, DamagedError, UserError
from pretrainer.storage import Store
from pretrainer.train.checkpoints.committed import committed_checkpoints
from pretrainer.train.scoring.selection import read_point, read_points
from tests.evaluation.cases import MAX_TOKENS, tokenizer
from tests.evaluation.test_pipeline import PICKED, run, run_config, weights_of

__all__ = ["run"]  # the fixture: a run with checkpoints of its steps 20 and 30

MEDIUM, FULL = {"letters", "cloze"}, {"letters", "cloze", "generate", "held-out web"}


def asked(run: Store, **fields: Any) -> Config:
    every = {"medium_every_steps": 10, "full_every_steps": 30}
    config = run_config(Path(run.location.path).parent)
    train = replace(config.train, checkpoint_every_steps=10, validate_every_steps=10)
    return replace(config, train=train, evaluation=replace(config.evaluation, **(every | fields)))


def frozen(run: Store, beside: bool = True, **fields: Any) -> Suite:
    found = freeze_suite(asked(run, **fields), run, beside)
    assert found is not None
    return found


class Notes:
    """Stands for the recorder's actor."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.record = SimpleNamespace(remote=self.events.append)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [])
    return Notes()


def checkpoint(run: Store, step: int) -> ray.train.Checkpoint:
    return ray.train.Checkpoint.from_directory(f"{run.location.path}/{committed_checkpoints(run)[step]}")


def scored(run: Store, step: int, cadence: Any, notes: Notes, found: Suite) -> dict[str, Any]:
    assert evaluate_checkpoint(found, tokenizer().vocab_size, notes, checkpoint(run, step), cadence) == {}
    (event,) = notes.events
    assert event["kind"] == "evaluation" and event["by"] == "beside" and event["step"] == step
    return dict(event["tasks"])


def test_a_task_beside_the_training_gives_the_scores_of_pipelines_evaluate(
    run: Store, notes: Notes, tmp_path: Path
) -> None:
    assert evaluate.main([run.uri, "--checkpoints", "20", "--to", str(tmp_path)]) == 0
    (expected,) = json.loads((tmp_path / "evaluation.json").read_text())["checkpoints"]
    tasks = scored(run, 20, "full", notes, frozen(run))
    assert set(tasks) == FULL and tasks == expected["tasks"]
    point = read_point(run, 20, "full")
    assert point is not None and point["tasks"] == tasks and point["folder"] == checkpoint(run, 20).path.split("/")[-1]


def test_the_workers_score_the_model_that_they_have_and_medium_leaves_out_what_takes_long(run: Store) -> None:
    ticks: list[int] = []
    model = weights_of(20).train()
    found = frozen(run, beside=False).score(model, torch.device("cpu"), "medium", lambda: ticks.append(1))
    assert set(found) == MEDIUM and len(ticks) == 2 and model.training
    whole = frozen(run, beside=False).score(model, torch.device("cpu"), "full", lambda: None)
    assert {name: whole[name] for name in MEDIUM} == found and set(whole) == FULL


def test_a_checkpoint_is_scored_once_however_often_it_is_asked(run: Store, notes: Notes) -> None:
    """Ray asks again when a driver died before it had the answer; another attempt's checkpoint is another one."""
    found = frozen(run)
    scored(run, 30, "medium", notes, found)
    evaluate_checkpoint(found, tokenizer().vocab_size, notes, checkpoint(run, 30), "medium")
    assert len(notes.events) == 1
    other = Path(checkpoint(run, 30).path).with_name("step-000000030-a000007")
    shutil.copytree(checkpoint(run, 30).path, other)
    evaluate_checkpoint(found, tokenizer().vocab_size, notes, ray.train.Checkpoint.from_directory(str(other)), "medium")
    assert len(notes.events) == 2 and notes.events[1]["folder"] == other.name
    shutil.rmtree(other)


def test_what_goes_wrong_is_told_and_left_to_ray(run: Store, notes: Notes, tmp_path: Path) -> None:
    broken = tmp_path / "step-000000040-a000000"
    shutil.copytree(checkpoint(run, 30).path, broken)
    next(broken.glob("*.distcp")).write_bytes(b"x")
    before = len(read_points(run))
    with pytest.raises(DamagedError):
        evaluate_checkpoint(
            frozen(run), tokenizer().vocab_size, notes, ray.train.Checkpoint.from_directory(str(broken)), "full"
        )
    (event,) = notes.events
    assert event["kind"] == "evaluation_failed" and "the checkpoint of step 40 was not evaluated" in event["message"]
    assert len(read_points(run)) == before


def test_the_run_keeps_its_task_files(run: Store, tmp_path: Path) -> None:
    """Gone or changed, the scores of a month are those of one file; another task needs another name."""
    original = tmp_path / "mine.jsonl"
    original.write_text('{"context": "a b", "answer": "c"}\n')
    mine = TaskConfig(name="mine", uri=str(original), kind="cloze")
    first = frozen(run, tasks=(*PICKED, mine))
    original.unlink()
    assert frozen(run, tasks=(mine,)).tasks == first.tasks[-1:]
    assert [len(task.examples) for task in (one.task for one in first.opened())][3] == 1
    with pytest.raises(ConfigError, match=r"tasks\[mine\] differs .* \(shots, seed\).* another name"):
        frozen(run, tasks=(replace(mine, shots=1, seed=7),))
    with pytest.raises(ConfigError, match=r"tasks\[letters\] differs .* \(uri\)"):
        frozen(run, tasks=(replace(PICKED[0], uri="elsewhere.jsonl"),))
    assert freeze_suite(run_config(tmp_path), run, True) is None


def test_the_model_reads_as_many_tokens_as_its_exported_folder_says(run: Store) -> None:
    config = asked(run)
    assert context_of(config) == MAX_TOKENS
    learned = replace(config, model=replace(config.model, positions="learned", context=99))
    assert context_of(learned) == 99


def test_ray_never_gives_up_the_task_but_by_its_timeout(run: Store) -> None:
    found = validation_config(frozen(run, cpus=2.0), 96, None, gpus=1.0)
    assert found.ray_remote_kwargs == {"num_cpus": 2.0, "num_gpus": 1.0, "max_retries": -1}


# ------------------------------------------------------------------------------------------------- place and checks


def there(cpus: float, gpus: float = 0.0) -> Cluster:
    return Cluster(cpus, gpus, 1, None, False)


def sized(run: Store, **fields: Any) -> Config:
    """Two workers of half a CPU and one source: 3 x 0.08 CPUs and 2 x 0.25 for the data."""
    config = asked(run, **fields)
    train = {"num_workers": (1, 2), "global_batch_tokens": 8 * MAX_TOKENS, "cpus_per_worker": 0.5}
    return replace(config, train=replace(config.train, **train))


def test_it_is_beside_where_there_is_something_to_spare(run: Store) -> None:
    needs = 2 * 0.5 + suite_data_cpus(run) + 1.0
    assert evaluates_beside(sized(run), there(needs), False) and not evaluates_beside(sized(run), there(3.0), True)
    assert not evaluates_beside(sized(run), there(needs - 0.1), False)
    assert evaluates_beside(sized(run), there(needs, 3), True)
    assert not evaluates_beside(sized(run), there(needs, 2), True)
    assert evaluates_beside(sized(run, gpus=0.0), there(needs, 2), True)
    assert not evaluates_beside(sized(run, where="workers"), there(64), False)
    assert evaluates_beside(sized(run, where="beside"), there(1), False)


def suite_data_cpus(run: Store) -> float:
    from pretrainer.data.pipeline import data_cpus

    return data_cpus(asked(run).data)


def test_a_place_that_the_cluster_has_not_is_refused(run: Store) -> None:
    with pytest.raises(ConfigError, match="where=beside needs 1 CPUs and 1 GPUs beside 2 trainers"):
        check_evaluation(sized(run, where="beside"), there(64, 2), True)
    check_evaluation(sized(run, where="beside"), there(64, 3), True)
    growing = sized(run, where="beside")
    check_evaluation(replace(growing, cluster=replace(growing.cluster, autoscaling=True)), there(1), True)


def test_a_task_file_that_cannot_be_read_is_told_before_anything_starts(run: Store, tmp_path: Path) -> None:
    nowhere = TaskConfig(name="mine", uri=str(tmp_path / "none.jsonl"), kind="cloze")
    with pytest.raises(UserError, match="does not exist"):
        check_evaluation(sized(run, tasks=(nowhere,)), there(64), False)
    check_evaluation(sized(run, tasks=(nowhere,), medium_every_steps=None, full_every_steps=None), there(64), False)


def test_the_plan_says_what_when_and_by_whom(run: Store) -> None:
    (row, warning) = evaluation_rows(sized(run), there(64), False)
    assert row[1] == (
        "3 task files; choices and cloze every 10 steps, everything every 30 steps, and at the end; by a task beside "
        "the training, 1 CPUs and 0 GPUs"
    )
    assert "letters, cloze, generate were not kept out" in warning[1]
    assert evaluation_rows(sized(run, where="workers"), there(64), False)[0][1].endswith("by the trainers, which wait")
    assert evaluation_rows(sized(run, medium_every_steps=None, full_every_steps=None), there(64), False) == []


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"medium_every_steps": 15}, "evaluation.medium_every_steps=15 .*multiple of train.checkpoint_every_steps=10"),
        ({"full_every_steps": 5}, "evaluation.full_every_steps=5 .*multiple of train.checkpoint_every_steps=10"),
        ({"best_by": "letters"}, "evaluation.best_by='letters'.*TASK/METRIC"),
        ({"best_by": "nothing/acc"}, "evaluation.best_by='nothing/acc'.*letters, cloze, generate"),
        ({"best_by": "letters/acc", "medium_every_steps": None, "full_every_steps": None}, "is never measured"),
        ({"stop_after_validations": 0}, "evaluation.stop_after_validations=0"),
        ({"timeout_s": 0}, "evaluation.timeout_s=0"),
        ({"min_improvement": -1.0}, "evaluation.min_improvement=-1.0"),
        ({"cpus": -1.0}, "evaluation.cpus=-1.0"),
    ],
)
def test_wrong_values_are_told_at_load(run: Store, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        asked(run, **fields)


def test_a_model_that_fills_masks_is_not_evaluated(run: Store) -> None:
    config = asked(run)
    with pytest.raises(ConfigError, match="needs model.causal=true"):
        replace(config, model=replace(config.model, causal=False), train=replace(config.train, objective="mlm"))


def test_the_best_can_be_exported_only_where_it_is_kept(run: Store) -> None:
    config = asked(run)
    with pytest.raises(ConfigError, match="train.export='best'.*train.keep_best=true"):
        replace(config.train, export="best")
    best = replace(config, train=replace(config.train, export="best", keep_best=True))
    assert parse_config(to_yaml(best)).train.export == "best"


@pytest.mark.parametrize(
    ("medium", "full", "due"),
    [
        (10, 30, {10: "medium", 20: "medium", 30: "full", 40: "medium", 45: "full"}),
        (10, None, {10: "medium", 20: "medium", 30: "medium", 40: "medium", 45: "medium"}),
        (None, 20, {10: None, 20: "full", 30: None, 40: "full", 45: "full"}),
        (None, None, dict.fromkeys((10, 20, 30, 40, 45))),
    ],
)
def test_when_what_is_due(medium: int | None, full: int | None, due: dict[int, str | None]) -> None:
    config = EvaluationConfig(medium_every_steps=medium, full_every_steps=full)
    assert {step: config.due(step, step == 45) for step in due} == due


def test_the_module_opens_a_suite_once_in_a_process(run: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = frozen(run).opened()
    monkeypatch.setattr(suite, "prepare", lambda *_arguments: pytest.fail("tokenized again"))
    assert frozen(run, beside=False).opened() is opened
