"""Checkpoints evaluated while training goes on, beside it and by its workers; and a run that ends early.

    python -m pytest -m "" -q tests/e2e/test_evaluation.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pretrainer.storage import Store
from pretrainer.train.scoring.selection import read_points
from tests.e2e.head import Head, Result, pipeline, tiny_config, two_sources

pytestmark = pytest.mark.slow
STEPS = {3: "medium", 6: "full"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def config(folder: Path) -> Path:
    lines = [{"context": f"for i in range({n}):\n    ", "choices": ["print(i)", "zebra ]["], "answer": 0}
             for n in range(8)]  # fmt: skip
    (folder / "choices.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "cloze.jsonl").write_text('{"context": "import", "answer": "os"}\n')
    tasks = [
        {"name": "choices", "uri": str(folder / "choices.jsonl"), "kind": "multiple_choice", "shots": 1},
        {"name": "written", "uri": str(folder / "cloze.jsonl"), "kind": "generate", "max_new_tokens": 4},
    ]
    evaluation = {"tasks": tasks, "medium_every_steps": 3, "full_every_steps": 6, "best_by": "choices/acc"}
    train = {"exact": True, "keep_best": True}
    return tiny_config(folder, two_sources(folder / "corpus"), evaluation=evaluation, train=train)


def run(head: Head, config: Path, name: str, *arguments: str) -> Result:
    result = pipeline("pretrain", "--config", str(config), f"run.name={name}", *arguments, env=head.env)
    assert result.code == 0, result.out + result.err
    return result


@pytest.fixture(scope="module")
def beside(head: Head, config: Path) -> Result:
    return run(head, config, "beside")


@pytest.fixture(scope="module")
def by_workers(head: Head, config: Path) -> Result:
    return run(head, config, "workers", "evaluation.where=workers")


def points(config: Path, name: str) -> list[dict[str, Any]]:
    return read_points(Store(str(config.parent / "runs" / name)))


def test_a_task_of_its_own_scores_every_checkpoint(beside: Result, config: Path) -> None:
    found = points(config, "beside")
    assert {point["step"]: point["cadence"] for point in found} == STEPS
    assert all(point["by"] == "beside" for point in found)
    assert [set(point["tasks"]) for point in found] == [
        {"choices"}, {"choices", "written", "held-out early", "held-out late"},
    ]  # fmt: skip
    assert "by a task beside the training, 1 CPUs and 0 GPUs" in beside.out
    assert "evaluation of step 3 (medium; beside the training):" in beside.out
    assert beside.summary["evaluation"]["choices"]["step"] == 6
    assert "scores" in beside.out.split("result")[-1]


def test_they_are_those_of_pipelines_evaluate(beside: Result, config: Path, tmp_path: Path, head: Head) -> None:
    """In float32 on a CPU with one thread or more: the same to rounding."""
    uri = str(config.parent / "runs/beside")
    assert pipeline("evaluate", uri, "--checkpoints", "3,6", "--to", str(tmp_path), env=head.env).code == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())
    expected = {one["step"]: one["tasks"] for one in report["checkpoints"]}
    for point in points(config, "beside"):
        for name, task in point["tasks"].items():
            for metric, value in task["metrics"].items():
                wanted = expected[point["step"]][name]["metrics"][metric]["value"]
                assert value["value"] == pytest.approx(wanted, rel=1e-5), (point["step"], name, metric)


def test_two_workers_in_lockstep_give_the_same_scores(by_workers: Result, beside: Result, config: Path) -> None:
    assert "by the trainers, which wait" in by_workers.out and "(full; training waited" in by_workers.out
    pairs = zip(points(config, "workers"), points(config, "beside"), strict=True)
    for mine, theirs in pairs:
        assert mine["by"] == "workers" and set(mine["tasks"]) == set(theirs["tasks"])
        for name, task in mine["tasks"].items():
            for metric, value in task["metrics"].items():
                assert value["value"] == pytest.approx(theirs["tasks"][name]["metrics"][metric]["value"], rel=1e-5)


def test_evaluating_changes_no_weight(by_workers: Result, beside: Result) -> None:
    for name in ("order_digest", "weights_sha256", "val_loss"):
        assert by_workers.summary[name] == beside.summary[name]


def test_the_best_by_a_task_is_kept(beside: Result, by_workers: Result, config: Path) -> None:
    for name in ("beside", "workers"):
        choices = {point["step"]: point["tasks"]["choices"]["metrics"] for point in points(config, name)}
        accuracy = {step: metrics["acc"]["value"] for step, metrics in choices.items()}
        (record,) = (config.parent / "runs" / name / "best").glob("*.json")
        kept = json.loads(record.read_text())
        assert kept["by"] == "choices/acc" and kept["value"] == accuracy[kept["step"]] == max(accuracy.values())


def test_scores_are_in_mlflow(beside: Result) -> None:
    client = MlflowClient(beside.summary["mlflow"]["uri"])
    history = client.get_metric_history(beside.summary["mlflow"]["run_id"], "evaluation/choices/acc")
    assert [metric.step for metric in history] == [3, 6]


def test_a_run_that_does_not_get_better_ends_early_and_stays_ended(head: Head, config: Path) -> None:
    rule = ("train.validate_every_steps=1", "evaluation.stop_after_validations=2", "evaluation.min_improvement=100")
    best = ("train.export=best", "evaluation.best_by=val_loss")
    arguments = ("early", *rule, *best, "evaluation.medium_every_steps=null")
    result = run(head, config, *arguments)
    assert result.summary["status"] == "completed" and result.summary["steps"] == 3
    assert result.summary["early_stop"] == {"step": 3, "stop_after_validations": 2, "min_improvement": 100}
    assert "after step 3: 2 validations in a row were no better" in result.out
    assert "the best checkpoint is exported, that of step 3" in result.out
    assert [point["cadence"] for point in points(config, "early")] == ["full"]  # at its end
    again = run(head, config, *arguments)
    assert "is complete: 3 steps" in again.out and "Raise evaluation.stop_after_validations" in again.out
    longer = run(head, config, *arguments, "evaluation.stop_after_validations=9")
    assert longer.summary["steps"] == 6 and longer.summary["early_stop"] is None
