"""What a start of a run finds: work to do, or a run that has ended by one rule or another.

    python -m pytest -q tests/test_start.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.driver.start import already_complete
from pretrainer.config import Config, EvaluationConfig
from pretrainer.storage import Store
from tests.train.specs import worker_spec

EARLY = {"step": 3, "stop_after_validations": 2, "min_improvement": 0.0}


def config(patience: int | None = None) -> Config:
    """Of nine steps."""
    return replace(worker_spec().config, evaluation=EvaluationConfig(stop_after_validations=patience))


def summary(run: Store, **fields: Any) -> None:
    run.write("summary.json", json.dumps({"status": "completed", "steps": 9, "val_loss": 2.0, **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "patience", "code"),
    [
        ({}, None, 0),
        ({"steps": 8}, None, None),
        ({"status": "stopped"}, None, None),
        ({"steps": 3, "early_stop": EARLY}, 2, 0),
        ({"steps": 3, "early_stop": EARLY}, 5, None),
        ({"steps": 3, "early_stop": EARLY}, None, None),
        ({"steps": 3, "early_stop": None}, 2, None),
    ],
)
def test_a_run_is_complete_at_its_last_step_or_where_its_rule_ended_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fields: dict[str, Any], patience: int | None, code: int | None
) -> None:
    run = Store(str(tmp_path))
    summary(run, **fields)
    assert already_complete(run, config(patience)) == code
    asked = "evaluation.stop_after_validations" if fields.get("early_stop") else "train.steps"
    assert (f"Raise {asked} to go on" in capsys.readouterr().out) == (code == 0)


def test_a_run_that_has_not_begun_has_work_to_do(tmp_path: Path) -> None:
    assert already_complete(Store(str(tmp_path)), config()) is None
