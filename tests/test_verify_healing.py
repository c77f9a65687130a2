"""The audit log and the decisions about spikes prove each other.

    python -m pytest -q tests/test_verify_healing.py
"""

from __future__ import annotations

import math

from pipelines.verify import healing_problems
from pretrainer.train.stability.policies import Heal
from pretrainer.train.telemetry.auditlog import Line


def line(step: int, reason: str | None = None) -> Line:
    return Line(step, 0, "", "", 64, 60, 2, 0, reason is None, {}, reason or "")


HEAL = Heal(3, 6, "loss_spike", "rollback", 0, 9.0, 1.0, 4.0, math.inf, first_step=5, end_step=7)


def test_a_step_is_left_out_if_and_only_if_a_decision_says_so() -> None:
    good = [line(4), line(5, "loss_spike"), line(6, "loss_spike"), line(7)]
    assert list(healing_problems([HEAL], good)) == []
    assert list(healing_problems([HEAL], [*good[:2], line(6), line(7)])) == [
        "step 6: it was applied, and decision 3 leaves it out"
    ]
    assert list(healing_problems([], good)) == [
        f"step {step}: it was not applied (loss_spike), and no decision says so" for step in (5, 6)
    ]


def test_an_overflow_needs_no_decision_and_older_logs_have_none() -> None:
    assert list(healing_problems([], [line(0, "overflow"), line(1, "")])) == []
