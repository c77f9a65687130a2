"""Scores are those of lm-evaluation-harness on the same files and the exported model.

    python -m pytest -q tests/evaluation/test_harness.py

harness/scores.json holds what it said; make_harness_scores.py writes it and records the versions. The slow test asks
the harness again, where it is installed (the extra `bench`).
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from pretrainer.config import TaskConfig
from pretrainer.evaluation.evaluate import TaskResult, evaluate_tasks
from pretrainer.evaluation.tasks import Task, read_task
from tests.evaluation.cases import MAX_TOKENS, SCORES, TASKS, digest, model, tokenizer

each_task = pytest.mark.parametrize("config", TASKS, ids=lambda config: config.name)
# The same float32 arithmetic in another order: the largest difference that was seen is 4e-5, of 200 nats.
NATS = 2e-4
AS_MEAN = ("acc", "acc_norm", "acc_bytes", "exact_match")


@cache
def recorded() -> dict[str, Any]:
    return dict(json.loads(SCORES.read_text(encoding="utf-8")))


@cache
def scored(config: TaskConfig) -> tuple[Task, TaskResult]:
    task = read_task(config)
    (result,) = evaluate_tasks(model(), tokenizer(), [task], "cpu", MAX_TOKENS, batch_tokens=400)
    return task, result


def test_the_record_is_of_this_model_and_says_where_it_is_from() -> None:
    origin = recorded()["origin"]
    assert origin["lm_eval"] == "0.4.13" and {"command", "transformers", "torch", "tokenizers"} <= set(origin)
    assert recorded()["weights_sha256"] == digest(model()), "the model of cases.py is another one: record anew"
    assert set(recorded()["tasks"]) == {config.name for config in TASKS}


@each_task
def test_questions_and_answers_are_the_same_texts(config: TaskConfig) -> None:
    task, _result = scored(config)
    theirs = [[request[:2] for request in example] for example in recorded()["tasks"][config.name]["examples"]]
    if task.scoring == "text":  # the harness has no context there
        theirs = [[["", text] for text, _nothing in example] for example in theirs]
    ours = [
        [[before + context, continuation] for context, continuation in example.pairs]
        for example, before in zip(task.examples, task.before, strict=True)
    ]
    assert ours == theirs


@each_task
def test_every_answer_gets_the_same_score(config: TaskConfig) -> None:
    task, result = scored(config)
    examples = recorded()["tasks"][config.name]["examples"]
    assert len(examples) == len(task.examples) > 0
    if task.scoring == "generate":
        assert list(result.answers) == [answer for [[_context, _nothing, answer]] in examples]
    for ours, theirs in zip(result.scores, examples, strict=False):
        if task.scoring == "text":
            assert sum(one.log_likelihood for one in ours) == pytest.approx(theirs[0][2], abs=NATS * len(theirs[0][0]))
            continue
        for one, (_context, _continuation, nats, is_greedy) in zip(ours, theirs, strict=True):
            assert one.log_likelihood == pytest.approx(nats, abs=NATS)
            assert one.is_greedy == is_greedy


@each_task
def test_metrics_are_the_same(config: TaskConfig) -> None:
    _task, result = scored(config)
    theirs = recorded()["tasks"][config.name]["metrics"]
    names = {name for name in theirs if not name.endswith("_stderr")}
    assert names and names <= set(result.metrics)
    for name in names:
        ours = result.metrics[name]
        if name in AS_MEAN:
            assert ours.value == pytest.approx(theirs[name], rel=1e-9)
            assert ours.stderr == pytest.approx(theirs[f"{name}_stderr"], rel=1e-9)
        else:  # a perplexity: what float32 sums is its logarithm, 80 nats of these untrained models
            assert math.log(ours.value) == pytest.approx(math.log(theirs[name]), rel=1e-6)


def is_cut(task: Task) -> bool:
    contexts = [before + one.pairs[0][0] for one, before in zip(task.examples, task.before, strict=True)]
    return any(len(tokenizer().encode(context)) > MAX_TOKENS for context in contexts)


def test_the_record_could_tell_differences() -> None:
    """Both outcomes of everything that is compared, and texts that are cut."""
    found = {name: task["metrics"] for name, task in recorded()["tasks"].items()}
    assert any(0 < one["exact_match"] < 1 for one in found.values() if "exact_match" in one)
    assert 0 < found["cloze"]["acc"] < 1 and 0 < found["lambada"]["acc"] < 1
    three = [[one[name] for name in ("acc", "acc_norm", "acc_bytes")] for one in found.values() if "acc_bytes" in one]
    assert any(acc != norm for acc, norm, _size in three) and any(norm != size for _acc, norm, size in three)
    assert {"hellaswag-2", "lambada-1", "cloze", "generate"} <= {one.name for one in TASKS if is_cut(scored(one)[0])}
    assert any(len(windows) > 1 for windows in scored(TASKS[-1])[1].scores)


@pytest.mark.slow
def test_the_harness_still_says_so(tmp_path: Path) -> None:
    """Asks the lm_eval that is installed, whatever its version; the tests above hold without it."""
    pytest.importorskip("lm_eval")
    from tests.evaluation.make_harness_scores import export, harness_scores

    export(tmp_path)
    again = harness_scores(tmp_path, TASKS)
    for config in TASKS:
        before = recorded()["tasks"][config.name]["examples"]
        now = json.loads(json.dumps(again[config.name]["examples"]))
        for old, new in zip(before, now, strict=True):
            assert [request[:2] for request in old] == [request[:2] for request in new]
            assert [request[3:] for request in old] == [request[3:] for request in new]
            if config.kind != "generate":
                assert [one[2] for one in new] == pytest.approx([one[2] for one in old], abs=NATS * 10)
