"""The parabola finds the optimum that the losses were made with, and its interval holds it as often as it says."""

from __future__ import annotations

import math
import random

import pytest

from pretrainer.tuning.fit import (
    COVERED,
    Point,
    around_best,
    best_batch,
    rate_over_batch,
    residual,
    tolerable_batch,
    valleys,
)
from tests.tuning.sweeps import bowl, points


def test_exact_losses_give_the_exact_optimum() -> None:
    found = valleys(points())
    assert [valley.batch_tokens for valley in found] == [1024, 2048, 4096]
    for valley in found:
        assert valley.best == pytest.approx(8e-3 * math.sqrt(valley.batch_tokens / 2048), rel=1e-6)
        assert valley.floor == pytest.approx(3.0 + 0.02 * math.log2(valley.batch_tokens / 1024), rel=1e-9)
        assert valley.is_inside and valley.interval is not None
        assert valley.interval.low == pytest.approx(valley.best) == pytest.approx(valley.interval.high)
    slope = rate_over_batch(found)
    assert slope is not None and slope.power == pytest.approx(0.5, abs=1e-6)
    assert best_batch(found).batch_tokens == 1024
    assert tolerable_batch(found).batch_tokens == 2048 and tolerable_batch(found, 0.1).batch_tokens == 4096


def test_far_points_do_not_bend_the_parabola() -> None:
    """A rate that diverges says nothing about the optimum: only the best point and two on each side are fitted."""
    rates = [1e-3 * 2**n for n in range(8)]
    good = [Point(2048, rate, bowl(2048, rate)) for rate in rates]
    bad = good[:-2] + [Point(2048, rates[-2], 9.0), Point(2048, rates[-1], math.inf)]
    (valley,) = valleys(bad)
    assert [p.learning_rate for p in valley.fitted] == rates[1:6] and len(valley.points) == 7
    assert valley.best == pytest.approx(8e-3, rel=1e-6)


def test_around_best_stays_inside() -> None:
    line = [Point(1, float(n), float(n)) for n in range(1, 7)]
    assert [p.learning_rate for p in around_best(line)] == [1.0, 2.0, 3.0]
    assert [p.learning_rate for p in around_best(line[::-1])] == [1.0, 2.0, 3.0]


def test_an_edge_is_told() -> None:
    falling = [Point(2048, rate, 3.0 - 0.1 * math.log(rate / 1e-3)) for rate in (1e-3, 2e-3, 4e-3)]
    falling[1] = falling[1]._replace(loss=falling[1].loss - 0.01)
    (valley,) = valleys(falling)
    assert not valley.is_inside and rate_over_batch([valley, valley]) is None


def test_two_points_and_one_that_opens_downwards_are_no_parabola() -> None:
    (two,) = valleys(points()[:2])
    assert two.coefficients is None and two.best == two.lowest.learning_rate == 6e-3 and two.interval is None
    (hill,) = valleys([Point(1, 1e-3, 1.0), Point(1, 2e-3, 2.0), Point(1, 4e-3, 1.1)])
    assert hill.coefficients is None and not hill.is_inside and hill.floor == 1.0


def test_three_points_have_no_residual_and_so_no_interval() -> None:
    (valley,) = valleys(points()[1:4])
    assert valley.coefficients is not None and valley.interval is None and residual([valley]) == (0.0, 0)


def test_the_residual_is_pooled_over_batches() -> None:
    noise = [0.01, -0.01, 0.01, -0.01]
    sigma, freedom = residual(valleys(points(noise)))
    assert freedom == 3 and sigma == pytest.approx(0.02, rel=0.35)  # the parabola takes three of four


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """200 sweeps with normal noise; binomial: 0.9 of 600 has a standard deviation of 0.012."""
    hits = total = widths = 0
    for seed in range(200):
        generator = random.Random(seed)
        noisy = [point._replace(loss=point.loss + generator.gauss(0, 0.02)) for point in points()]
        for valley in valleys(noisy):
            if valley.interval is None:
                continue
            truth, total = 8e-3 * math.sqrt(valley.batch_tokens / 2048), total + 1
            hits += valley.interval.low <= truth <= valley.interval.high
            widths += valley.interval.high < 4 * valley.interval.low
    assert total > 590 and abs(hits / total - COVERED) < 0.05
    assert widths / total > 0.5  # and it says something


def test_fits_are_the_same_every_time() -> None:
    noise = [0.01, -0.02, 0.015]
    assert valleys(points(noise)) == valleys(points(noise)[::-1])
