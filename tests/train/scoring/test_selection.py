"""Which checkpoint is the best, and when a run has stopped getting better: by the rules as they are written.

    python -m pytest -q tests/train/scoring/test_selection.py
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrainer.config import EvaluationConfig
from pretrainer.pooled import pooled_loss
from pretrainer.storage import Store
from pretrainer.train.scoring.selection import (
    evaluation_event,
    is_better,
    is_over,
    judge,
    read_point,
    read_points,
    value_of,
    write_point,
)
from pretrainer.train.spec import TrainState

RESULT = {"arc": {"metrics": {"acc": {"value": 0.25}, "perplexity": {"value": 9.0}}}}
SOURCES = {"a": {"loss": 2.0, "targets": 300}, "b": {"loss": 6.0, "targets": 100}}


def watched(losses: list[float], **fields: Any) -> list[bool]:
    """Whether the run is over after each validation; every state goes through a checkpoint."""
    config, state, found = EvaluationConfig(**fields), TrainState(), []
    for loss in losses:
        judge(state, loss, config)
        state = TrainState(**json.loads(json.dumps(asdict(state))))
        found.append(is_over(state, config))
    return found


def test_a_run_ends_after_so_many_validations_that_were_no_better() -> None:
    losses = [3.0, 2.0, 2.0, 1.9, 1.95, 1.9, 2.5, 1.0]
    assert watched(losses, stop_after_validations=3) == [False] * 6 + [True, False]
    assert watched(losses, stop_after_validations=1) == [False, False, True, False, True, True, True, False]
    assert watched(losses) == [False] * 8


def test_a_loss_that_is_only_a_little_less_is_no_better() -> None:
    losses = [3.0, 2.96, 2.92, 2.88]
    assert watched(losses, stop_after_validations=2, min_improvement=0.05) == [False, False, False, False]
    assert watched(losses, stop_after_validations=2, min_improvement=0.1) == [False, False, True, False]
    assert watched(losses, stop_after_validations=2, min_improvement=0.2) == [False, False, True, True]


@given(st.lists(st.floats(0.1, 9.0), min_size=1, max_size=30), st.integers(1, 5))
def test_it_ends_where_the_last_losses_are_all_no_less_than_the_best_before_them(losses: list[float], n: int) -> None:
    ended = watched(losses, stop_after_validations=n)
    for at in range(len(losses)):
        first = max(0, at + 1 - n)
        before, last = losses[:first], losses[first : at + 1]
        assert ended[at] == (bool(before) and min(last) >= min(before))


def test_a_loss_over_sources_counts_their_targets() -> None:
    assert pooled_loss(SOURCES) == 3.0


@pytest.mark.parametrize(
    ("event", "by", "value"),
    [
        ({"kind": "validation", "sources": SOURCES}, "val_loss", 3.0),
        ({"kind": "validation", "sources": SOURCES}, "arc/acc", None),
        ({"kind": "evaluation", "tasks": RESULT}, "arc/acc", 0.25),
        ({"kind": "evaluation", "tasks": RESULT}, "arc/perplexity", 9.0),
        ({"kind": "evaluation", "tasks": RESULT}, "arc/exact_match", None),
        ({"kind": "evaluation", "tasks": RESULT}, "lambada/acc", None),
        ({"kind": "evaluation", "tasks": RESULT}, "val_loss", None),
        ({"kind": "steps"}, "arc/acc", None),
        ({"kind": "steps"}, "val_loss", None),
    ],
)
def test_what_an_event_says_of_a_checkpoint(event: dict[str, Any], by: str, value: float | None) -> None:
    assert value_of(event, by) == value


def test_less_is_better_of_a_loss_and_more_of_an_accuracy() -> None:
    for by in ("val_loss", "a/perplexity", "held-out web/bits_per_byte", "a/byte_perplexity"):
        assert is_better(1.0, 2.0, by) and not is_better(2.0, 1.0, by) and not is_better(1.0, 1.0, by)
    for by in ("a/acc", "a/acc_norm", "a/exact_match", "a/top1"):
        assert is_better(2.0, 1.0, by) and not is_better(1.0, 2.0, by) and not is_better(1.0, 1.0, by)


def test_points_of_a_run_are_read_in_their_order_and_a_later_one_of_a_step_takes_its_place(tmp_path: Path) -> None:
    run = Store(str(tmp_path))
    assert read_points(run) == [] and read_point(run, 20, "full") is None
    for step, cadence, seconds in ((1000, "full", 1.0), (20, "medium", 2.0), (20, "full", 3.0), (20, "full", 4.0)):
        write_point(run, evaluation_event(step, cadence, RESULT, seconds, "workers", "f"))  # type: ignore[arg-type]
    found = [(point["step"], point["cadence"], point["seconds"]) for point in read_points(run)]
    assert found == [(20, "full", 4.0), (20, "medium", 2.0), (1000, "full", 1.0)]
    point = read_point(run, 20, "full")
    assert point is not None and point["tasks"] == RESULT and point["by"] == "workers" and point["folder"] == "f"
