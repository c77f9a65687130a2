"""Task files, scored by the workers behind a checkpoint: what is due, what is left to the next group, what is made up.

    python -m pytest -q tests/train/test_scores.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from pretrainer.config import EvaluationConfig
from pretrainer.storage import Store
from pretrainer.train.scores import Scores
from pretrainer.train.scoring.selection import evaluation_event, read_points, write_point
from pretrainer.train.spec import TrainState
from tests.train.ranks import run_ranks
from tests.train.samples import CPU
from tests.train.specs import worker_spec

CONFIG = EvaluationConfig(medium_every_steps=10, full_every_steps=40)


class Evaluator:
    """Says which cadence it was asked for."""

    def __init__(self, beside: bool) -> None:
        self.beside, self.asked = beside, list[str]()

    def score(self, model: Any, device: Any, cadence: str, tick: Callable[[], None]) -> dict[str, Any]:
        self.asked.append(cadence)
        tick()
        return {"arc": cadence}


class Told:
    """Stands for the phases and the reporter."""

    def __init__(self, run: Store) -> None:
        self.run, self.phases = run, list[tuple[str, int]]()

    def enter(self, phase: str, step: int) -> None:
        self.phases.append((phase, step))

    def evaluation(self, state: TrainState, cadence: Any, tasks: Any, seconds: float, folder: str) -> None:
        write_point(self.run, evaluation_event(state.step, cadence, tasks, seconds, "workers", folder))


def scores(run: Path, beside: bool = False, rank: int = 0, evaluator: Any = "") -> Scores:
    spec = worker_spec(run)
    evaluator = Evaluator(beside) if evaluator == "" else evaluator
    train = replace(spec.config.train, checkpoint_every_steps=10)
    spec = replace(spec, config=replace(spec.config, train=train, evaluation=CONFIG), evaluator=evaluator)
    told: Any = Told(Store(str(run)))
    model: Any = nn.Linear(1, 1)
    return Scores(spec, model, CPU, rank, told, told)


def points(run: Path) -> list[tuple[int, str, str]]:
    return [(point["step"], point["cadence"], point["folder"]) for point in read_points(Store(str(run)))]


def test_the_workers_score_what_is_due_and_say_so(tmp_path: Path) -> None:
    one = scores(tmp_path)
    for step in (5, 10, 20, 40):
        one.score(TrainState(step=step), False, f"step-{step}")
    one.score(TrainState(step=45), True, "step-45")
    assert points(tmp_path) == [
        (10, "medium", "step-10"), (20, "medium", "step-20"), (40, "full", "step-40"), (45, "full", "step-45"),
    ]  # fmt: skip
    told: Any = one.phases
    assert told.phases == [("evaluate", step) for step in (10, 20, 40, 45)]
    assert all(one.beside(step, False) is None for step in (10, 40))


def test_a_task_beside_the_training_leaves_the_workers_nothing(tmp_path: Path) -> None:
    one = scores(tmp_path, beside=True)
    assert [one.beside(step, step == 45) for step in (5, 10, 40, 45)] == [None, "medium", "full", "full"]
    one.score(TrainState(step=40), False, "step-40")
    one.make_up(TrainState(step=40), False, "step-40")
    nobody = scores(tmp_path, evaluator=None)
    nobody.score(TrainState(step=40), False, "step-40")
    nobody.make_up(TrainState(step=40), False, "step-40")
    assert nobody.beside(40, False) is None and points(tmp_path) == []


@pytest.mark.parametrize(
    ("step", "known", "asked"),
    [
        (40, None, ["full"]), (40, "step-40", []), (40, "step-40-of-another-attempt", ["full"]), (45, None, []),
        (0, None, []),
    ],
)  # fmt: skip
def test_a_group_begins_with_what_is_missing_of_its_checkpoint(
    tmp_path: Path, step: int, known: str | None, asked: list[str]
) -> None:
    if known:
        write_point(Store(str(tmp_path)), evaluation_event(step, "full", {}, 1.0, "workers", known))
    one = scores(tmp_path)
    one.make_up(TrainState(step=step), False, f"step-{step}")
    evaluator: Any = one.evaluator
    assert evaluator.asked == asked


def both(rank: int, _world: int, folder: str) -> list[str]:
    one = scores(Path(folder), rank=rank)
    one.make_up(TrainState(step=40), False, "step-40")
    evaluator: Any = one.evaluator
    return list(evaluator.asked)


def test_all_ranks_do_what_rank_0_has_seen(tmp_path: Path) -> None:
    """One that read the list a moment later would wait for the others for ever."""
    assert run_ranks(2, both, str(tmp_path)) == [["full"], ["full"]]
    assert run_ranks(2, both, str(tmp_path)) == [[], []]


def test_the_model_of_the_run_is_scored_on_its_own_device(tmp_path: Path) -> None:
    seen: list[Any] = []
    evaluator = SimpleNamespace(beside=False, score=lambda *given: seen.append(given[:3]) or {})
    one = scores(tmp_path, evaluator=evaluator)
    one.score(TrainState(step=10), False, "step-10")
    assert seen == [(one.model, CPU, "medium")]
