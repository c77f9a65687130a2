"""Which checkpoint is the best, and when a run has stopped getting better: pure rules over what was measured.

Best: the least held-out loss over all sources, weighted by their targets, or the best value of one metric of one task
(evaluation.best_by). The run ends early when the last evaluation.stop_after_validations held-out losses in a row are
no less than the best before them by evaluation.min_improvement (Prechelt 1998, "Early stopping - but when?", UP
criterion against the best so far). Both counts are in every checkpoint, so a restart goes on counting.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pretrainer.config import EvaluationConfig
from pretrainer.config.evaluation import LOWER_IS_BETTER, Cadence
from pretrainer.pooled import pooled_loss
from pretrainer.storage import Store
from pretrainer.train.spec import Tasks, TrainState


def value_of(event: Mapping[str, Any], best_by: str) -> float | None:
    """What an event says of a checkpoint; None where it does not say what is asked."""
    task, _slash, metric = best_by.rpartition("/")
    if event["kind"] == "validation" and not task:
        return pooled_loss(event["sources"])
    if event["kind"] != "evaluation" or not task:
        return None
    found = event["tasks"].get(task, {}).get("metrics", {}).get(metric)
    return None if found is None else float(found["value"])


def is_better(value: float, than: float, best_by: str) -> bool:
    return value < than if best_by.rpartition("/")[2] in LOWER_IS_BETTER else value > than


def judge(state: TrainState, loss: float, config: EvaluationConfig) -> None:
    """Count a held-out loss in the state."""
    if state.best_loss is None or loss < state.best_loss - config.min_improvement:
        state.best_loss, state.validations_without = loss, 0
    else:
        state.validations_without += 1


def is_over(state: TrainState, config: EvaluationConfig) -> bool:
    """Whether the run is to end though it has steps left."""
    patience = config.stop_after_validations
    return patience is not None and state.validations_without >= patience


# -------------------------------------------------------------------------------------- evaluations while training

POINTS = "evaluation/points"


def evaluation_event(step: int, cadence: Cadence, tasks: Tasks, seconds: float, by: str, folder: str) -> dict[str, Any]:
    """The recorder's event. by: "workers", which waited so many seconds, or "beside" the training. folder: name of the
    checkpoint's."""
    about = {"step": step, "cadence": cadence, "seconds": seconds, "by": by, "folder": folder}
    return {"kind": "evaluation", "tasks": tasks, **about}


def write_point(run: Store, event: Mapping[str, Any]) -> None:
    """Keep an evaluation in the run folder, in the place of an earlier one of the same step."""
    point = {name: event[name] for name in ("step", "cadence", "by", "folder", "seconds", "tasks")}
    run.write(_point_path(event["step"], event["cadence"]), json.dumps(point, indent=1).encode())


def read_point(run: Store, step: int, cadence: Cadence) -> dict[str, Any] | None:
    """An evaluation of a step; None where there was none."""
    try:
        return dict(json.loads(run.read(_point_path(step, cadence))))
    except FileNotFoundError:
        return None


def _point_path(step: int, cadence: Cadence) -> str:
    return f"{POINTS}/step-{step:09d}-{cadence}.json"


def read_points(run: Store) -> list[dict[str, Any]]:
    """All evaluations of a run, by step."""
    paths = [path for path, _size, _version in run.list(POINTS) if path.endswith(".json")]
    return [json.loads(run.read(path)) for path in sorted(paths)]
