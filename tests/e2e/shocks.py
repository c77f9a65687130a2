"""Learning rates that go wrong at a step, by train.schedule=tests.e2e.shocks:<name>."""

from __future__ import annotations

from pretrainer.train.optim.schedule import Moment, linear

SHOCK_STEP = 50


def not_a_number(at: Moment) -> float:
    """One step behind which nothing is finite, with a loss and a gradient that are fine."""
    return 1e30 if at.step == SHOCK_STEP else linear(at)


def shock(at: Moment) -> float:
    """One step that throws the weights far away."""
    return 300.0 if at.step == SHOCK_STEP else linear(at)
