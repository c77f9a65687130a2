"""A scaling law of one's own: E, A, B, alpha and beta of L(N, D) = E + A / N^alpha + B / D^beta from a ladder of runs.

Approach 3 of Hoffmann et al. 2022 (arXiv:2203.15556, section 3.3 and appendix D.2): the Huber loss (delta 1e-3) between
predicted and measured log losses, minimised by L-BFGS from a grid of starting points. The prediction is written as
log-sum-exp(a - alpha ln N, b - beta ln D, e), which is convex in none of its five parameters, hence the grid.

Departures: L-BFGS begins at the BEST_STARTS of their 4,500 starting points by objective, and the sum over runs is not
cut short by a tolerance on its mean, which is what bent their printed coefficients (Besiroglu et al. 2024,
arXiv:2404.10102, section 3).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from pretrainer.errors import UserError
from pretrainer.plan.laws import LossFit

DELTA = 1e-3
BEST_STARTS = 16
RESAMPLES = 100
COVERED = 0.8
"""Share of the resamples that an interval holds, as in Hoffmann et al. 2022, table 2."""
SEED = 20
FEWEST_RUNS = 7
"""Five parameters need more runs than that, and one is held back."""
# a, b, e, alpha, beta: appendix D.2 of Hoffmann et al.
STARTS = ((0.0, 5.0, 10.0, 15.0, 20.0, 25.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0), (-1.0, -0.5, 0.0, 0.5, 1.0),
          (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 0.5, 1.0, 1.5, 2.0))  # fmt: skip


class Run(NamedTuple):
    """A run of a ladder at its end."""

    parameters: float
    tokens: float
    loss: float

    @property
    def flops(self) -> float:
        return 6 * self.parameters * self.tokens


@dataclass(frozen=True)
class Fit:
    """The law, and what resampled ladders say of it."""

    law: LossFit
    resampled: tuple[LossFit, ...]
    runs: tuple[Run, ...]

    def interval(self, values: Sequence[float]) -> tuple[float, float]:
        """Of a value of every resample, in their order."""
        tail = (1 - COVERED) / 2
        low, high = np.quantile(np.asarray(values), [tail, 1 - tail])
        return float(low), float(high)

    @property
    def largest_error(self) -> float:
        """Of the runs that were fitted, as a share of their loss."""
        return max(abs(self.law.loss(run.parameters, run.tokens) / run.loss - 1) for run in self.runs)


@dataclass(frozen=True)
class HeldBack:
    """The largest run of the ladder, and what the others say of it."""

    run: Run
    fit: Fit

    @property
    def predicted(self) -> float:
        return self.fit.law.loss(self.run.parameters, self.run.tokens)

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.run.loss - 1


def hold_back(runs: Sequence[Run], resamples: int = RESAMPLES) -> HeldBack:
    """Fit without the run of the most compute; UserError for too small a ladder."""
    check_ladder(runs)
    largest = max(runs, key=lambda run: (run.flops, run.parameters))
    return HeldBack(largest, fit([run for run in runs if run is not largest], resamples))


def check_ladder(runs: Sequence[Run]) -> None:
    sizes, lengths = {run.parameters for run in runs}, {run.tokens for run in runs}
    if len(runs) < FEWEST_RUNS or min(len(sizes), len(lengths)) < 3:
        raise UserError(
            f"a ladder of {len(runs)} finished runs with {len(sizes)} sizes and {len(lengths)} lengths cannot be "
            f"fitted: the law has five parameters; use at least {FEWEST_RUNS} runs, 3 sizes and 3 lengths "
            "(configs/ladder.yaml)"
        )


def fit(runs: Sequence[Run], resamples: int = RESAMPLES) -> Fit:
    """The law of these runs; the same every time."""
    found = _minimise(runs, _starts(runs))
    generator = np.random.default_rng(SEED)
    again = []
    for _ in range(resamples):
        drawn = [runs[i] for i in generator.integers(0, len(runs), len(runs))]
        again.append(_law(_minimise(drawn, [found])))
    return Fit(_law(found), tuple(again), tuple(runs))


def _law(found: np.ndarray) -> LossFit:
    a, b, e, alpha, beta = map(float, found)
    return LossFit("ladder", math.exp(e), math.exp(a), math.exp(b), alpha, beta, "fitted to the ladder of this config")


def _starts(runs: Sequence[Run]) -> list[np.ndarray]:
    """The best of the grid by objective."""
    every = np.array(list(itertools.product(*STARTS)))
    values = np.array([objective(start, *_logs(runs))[0] for start in every])
    return list(every[np.argsort(values, kind="stable")[:BEST_STARTS]])


def _minimise(runs: Sequence[Run], starts: Sequence[np.ndarray]) -> np.ndarray:
    logs = _logs(runs)
    options = {"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-9}
    # Exponents of a power law that falls; an irreducible loss below every measured one.
    bounds = [(-10.0, 60.0), (-10.0, 60.0), (-10.0, float(logs[2].min())), (0.0, 3.0), (0.0, 3.0)]
    found = [
        minimize(objective, np.clip(start, *np.array(bounds).T), logs, jac=True, method="L-BFGS-B", bounds=bounds,
                 options=options)
        for start in starts
    ]  # fmt: skip
    return min(found, key=lambda one: float(one.fun)).x


def _logs(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln N, ln D and ln L of each run."""
    n, d, loss = np.log(np.array(runs, dtype=np.float64)).T
    return n, d, loss


def objective(x: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> tuple[float, np.ndarray]:
    """(sum of Huber losses over runs, its gradient) at x = (a, b, e, alpha, beta)."""
    a, b, e, alpha, beta = x
    terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])  # [3, runs]
    top = terms.max(axis=0)
    shares = np.exp(terms - top)
    total = shares.sum(axis=0)
    difference = top + np.log(total) - loss
    inside = np.abs(difference) <= DELTA
    value = np.where(inside, 0.5 * difference**2, DELTA * (np.abs(difference) - 0.5 * DELTA)).sum()
    slope = np.where(inside, difference, DELTA * np.sign(difference)) * shares / total  # d value / d terms
    gradient = np.array([slope[0].sum(), slope[1].sum(), slope[2].sum(), -(slope[0] * n).sum(), -(slope[1] * d).sum()])
    return float(value), gradient
