"""What the losses of a sweep say: a parabola in log learning rate for each batch, its optimum, and how sure that is.

    valleys(points)          one Valley per batch that has enough points
    rate_over_batch(found)   how the best rate moves with the batch

Near its optimum the final loss is close to a parabola in the logarithm of the learning rate, far from it it is not: so
only the points around the best one are fitted. The uncertainty is that of the residuals, pooled over all batches: it
holds what the parabola does not explain and the noise of single runs, but no other seed was tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

NEIGHBOURS = 2
"""Points on each side of the best one that are fitted."""
DRAWS = 2000
COVERED = 0.9
"""Share of the draws that an interval holds."""
SEED = 20


class Point(NamedTuple):
    """The result of a trial that went to its end."""

    batch_tokens: int
    learning_rate: float
    loss: float


class Interval(NamedTuple):
    """Holds COVERED of the draws; an end is infinite where too many draws have no optimum on that side."""

    low: float
    high: float


@dataclass(frozen=True)
class Valley:
    """loss = floor + curvature (ln rate - ln best)^2 of one batch; points by rate, those that were fitted too."""

    batch_tokens: int
    points: tuple[Point, ...]
    fitted: tuple[Point, ...]
    coefficients: tuple[float, float, float] | None
    """Of x^2, x and 1 for x = ln rate; None where no parabola opens upwards."""
    interval: Interval | None = None
    """Of the best rate; None without a residual to judge by."""

    @property
    def is_inside(self) -> bool:
        """Whether the optimum lies strictly between the smallest and the largest rate that were tried."""
        low, high = self.points[0].learning_rate, self.points[-1].learning_rate
        return self.coefficients is not None and low < self.best < high

    @property
    def best(self) -> float:
        """The fitted optimum, or the best rate that was tried."""
        if self.coefficients is None:
            return self.lowest.learning_rate
        return math.exp(-self.coefficients[1] / (2 * self.coefficients[0]))

    @property
    def floor(self) -> float:
        """Loss at the optimum."""
        return self.lowest.loss if self.coefficients is None else self.at(self.best)

    @property
    def lowest(self) -> Point:
        return min(self.points, key=lambda point: point.loss)

    def at(self, rate: float) -> float:
        """The parabola."""
        assert self.coefficients is not None
        return float(np.polyval(self.coefficients, math.log(rate)))


def around_best(points: Sequence[Point]) -> list[Point]:
    """By rate, the best point and its neighbours."""
    ordered = sorted(points, key=lambda point: point.learning_rate)
    best = min(range(len(ordered)), key=lambda i: ordered[i].loss)
    return ordered[max(0, best - NEIGHBOURS) : best + NEIGHBOURS + 1]


def parabola(rates: Sequence[float], losses: Sequence[float]) -> tuple[float, float, float] | None:
    """Least squares; None for fewer than three rates, or one that opens downwards."""
    if len(set(rates)) < 3:
        return None
    a, b, c = np.polyfit(np.log(rates), losses, 2)
    return (float(a), float(b), float(c)) if a > 0 else None


def valleys(points: Sequence[Point]) -> list[Valley]:
    """By batch, smallest first; points whose loss is not finite are left out."""
    finite = [point for point in points if math.isfinite(point.loss)]
    batches = sorted({point.batch_tokens for point in finite})
    found = [_valley(batch, [point for point in finite if point.batch_tokens == batch]) for batch in batches]
    sigma, freedom = residual(found)
    return [Valley(v.batch_tokens, v.points, v.fitted, v.coefficients, _interval(v, sigma, freedom)) for v in found]


def _valley(batch: int, points: Sequence[Point]) -> Valley:
    ordered, fitted = sorted(points, key=lambda point: point.learning_rate), around_best(points)
    coefficients = parabola([p.learning_rate for p in fitted], [p.loss for p in fitted])
    return Valley(batch, tuple(ordered), tuple(fitted), coefficients)


def residual(found: Sequence[Valley]) -> tuple[float, int]:
    """(standard deviation of the residuals, their degrees of freedom) over all batches."""
    fits = [valley for valley in found if valley.coefficients is not None]
    squares = sum((point.loss - valley.at(point.learning_rate)) ** 2 for valley in fits for point in valley.fitted)
    freedom = sum(len(valley.fitted) - 3 for valley in fits)
    return (math.sqrt(squares / freedom), freedom) if freedom else (0.0, 0)


def draws(valley: Valley, sigma: float, freedom: int) -> np.ndarray:
    """Optima of refits to redrawn losses, ln rate; nan where such a fit has none.

    The size of the noise is itself drawn from what so few residuals say of it (Student's t).
    """
    generator = np.random.default_rng([SEED, valley.batch_tokens])
    x = np.log([point.learning_rate for point in valley.fitted])
    assert valley.coefficients is not None
    scale = sigma * np.sqrt(freedom / generator.chisquare(freedom, size=DRAWS))
    losses = np.polyval(valley.coefficients, x)[:, None] + scale * generator.standard_normal((len(x), DRAWS))
    a, b, _c = np.polyfit(x, losses, 2)
    return np.where(a > 0, -b / (2 * np.where(a > 0, a, 1.0)), np.nan)


def _interval(valley: Valley, sigma: float, freedom: int) -> Interval | None:
    if valley.coefficients is None or not freedom:
        return None
    found, tail = draws(valley, sigma, freedom), (1 - COVERED) / 2
    # A draw without an optimum speaks against both ends.
    low = np.quantile(np.where(np.isnan(found), -np.inf, found), tail, method="lower")
    high = np.quantile(np.where(np.isnan(found), np.inf, found), 1 - tail, method="higher")
    return Interval(math.exp(low), math.exp(high))


class Slope(NamedTuple):
    """best rate = constant x batch^power; the interval of the power, None without residuals."""

    power: float
    interval: Interval | None


def rate_over_batch(found: Sequence[Valley]) -> Slope | None:
    """How the best rate moves with the batch; None with fewer than two batches whose optimum is inside."""
    inside = [valley for valley in found if valley.is_inside]
    if len(inside) < 2:
        return None
    x = np.log([valley.batch_tokens for valley in inside])
    power = float(np.polyfit(x, np.log([valley.best for valley in inside]), 1)[0])
    sigma, freedom = residual(found)
    if not freedom:
        return Slope(power, None)
    drawn = np.stack([draws(valley, sigma, freedom) for valley in inside])
    powers = np.polyfit(x, drawn[:, ~np.isnan(drawn).any(axis=0)], 1)[0]
    tail = (1 - COVERED) / 2
    return Slope(power, Interval(*map(float, np.quantile(powers, [tail, 1 - tail]))))


def best_batch(found: Sequence[Valley]) -> Valley:
    """The batch of the lowest floor."""
    return min(found, key=lambda valley: valley.floor)


def tolerable_batch(found: Sequence[Valley], tolerance: float = 0.01) -> Valley:
    """The largest batch whose floor is within `tolerance` of the lowest: what parallelism costs nothing that counts."""
    least = best_batch(found).floor
    return max((v for v in found if v.floor <= least * (1 + tolerance)), key=lambda valley: valley.batch_tokens)
