"""The fit finds the law that made the losses, in spite of noise and of runs that went wrong."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.optimize import check_grad

from pretrainer.errors import UserError
from pretrainer.plan.laws import REFIT, LossFit
from pretrainer.tuning.scaling_fit import Run, check_ladder, fit, hold_back, objective

SMALL = LossFit("small", 1.9, 30.0, 300.0, 0.30, 0.35)


def ladder(law: LossFit, noise: float = 0.0, seed: int = 0) -> list[Run]:
    generator = random.Random(seed)
    sizes, lengths = [5e4 * 2**n for n in range(5)], [1e5 * 2**n for n in range(5)]
    return [
        Run(n, d, law.loss(n, d) * math.exp(generator.gauss(0, noise))) for n in sizes for d in lengths
    ]


def chinchilla() -> list[Run]:
    return [Run(n, d, REFIT.loss(n, d)) for n in np.geomspace(7e7, 1.6e10, 6) for d in np.geomspace(5e9, 5e11, 6)]


def test_the_gradient_is_that_of_the_objective() -> None:
    runs = ladder(SMALL, 0.05)
    logs = tuple(np.log(np.array(runs)).T)
    for x in ([3.0, 5.0, 0.5, 0.3, 0.4], [10.0, 0.0, -1.0, 1.0, 0.0]):
        error = check_grad(lambda x: objective(x, *logs)[0], lambda x: objective(x, *logs)[1], np.array(x))
        assert error < 1e-5


@pytest.mark.parametrize(("runs", "law"), [(ladder(SMALL), SMALL), (chinchilla(), REFIT)], ids=["ladder", "chinchilla"])
def test_exact_losses_give_back_the_law(runs: list[Run], law: LossFit) -> None:
    found = fit(runs, resamples=0).law
    assert found.e == pytest.approx(law.e, rel=0.02)
    assert (found.alpha, found.beta) == pytest.approx((law.alpha, law.beta), rel=0.03)
    assert found.frontier.exponent == pytest.approx(law.frontier.exponent, rel=0.02)
    assert all(found.loss(run.parameters, run.tokens) == pytest.approx(run.loss, rel=1e-3) for run in runs)


def test_a_run_that_went_wrong_hardly_counts() -> None:
    runs = ladder(SMALL, 0.002)
    broken = [run._replace(loss=run.loss * 1.5) if i == 12 else run for i, run in enumerate(runs)]
    clean, robust = fit(runs, resamples=0).law, fit(broken, resamples=0).law
    for n, d, _loss in runs:
        assert robust.loss(n, d) == pytest.approx(clean.loss(n, d), rel=0.01)


def test_the_largest_run_is_held_back_and_predicted() -> None:
    for seed in range(3):
        runs = ladder(SMALL, 0.004, seed)
        held = hold_back(runs, resamples=0)
        assert held.run == runs[-1] and held.run not in held.fit.runs and len(held.fit.runs) == 24
        assert abs(held.error) < 0.02
    wrong = [*runs[:-1], runs[-1]._replace(loss=runs[-1].loss * 1.2)]
    assert hold_back(wrong, resamples=0).error == pytest.approx(-1 / 6, abs=0.03)  # it does not see it


@pytest.mark.slow
def test_intervals_hold_the_truth() -> None:
    hits = 0
    for seed in range(5):
        found = fit(ladder(SMALL, 0.01, seed)[::2], resamples=20)
        low, high = found.interval([law.loss(1e7, 1e8) for law in found.resampled])
        hits += low <= SMALL.loss(1e7, 1e8) <= high
        assert low < high
    assert hits >= 3
    assert found.largest_error < 0.05


def test_the_same_runs_give_the_same_fit() -> None:
    runs = ladder(SMALL, 0.01)[::2]
    assert fit(runs, resamples=3) == fit(runs, resamples=3)


def test_a_ladder_that_is_too_small_is_refused() -> None:
    runs = ladder(SMALL)
    check_ladder(runs)
    for few in (runs[:5], runs[::5], runs[:10]):
        with pytest.raises(UserError, match="five parameters"):
            check_ladder(few)
