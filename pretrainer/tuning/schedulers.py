"""Which trials are ended before their time: pure functions of the losses that all of them have reported.

    decide(sweep, mine, others)     a sentence with the reason, or None: go on

Budgets are tokens, never seconds or steps: report n of every trial is at the same number of tokens, whatever its batch,
its speed, and how often it was interrupted. A decision is written down before anyone acts on it, and follows from
records in storage alone, so it is the same after a crash.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from pretrainer.config import SweepConfig

Losses = Sequence[float]
"""Held-out losses of a trial at its reports so far; inf where it was not finite."""

FEWEST_OTHERS = 3
"""The median of fewer trials says little."""


def decide(sweep: SweepConfig, mine: Losses, others: Sequence[Losses]) -> str | None:
    """Why a trial that has just reported must end now; None where it goes on, or is at its end anyway."""
    if not mine or len(mine) >= sweep.reports or sweep.scheduler == "none":
        return None
    return SCHEDULERS[sweep.scheduler](sweep, mine, others)


def rungs(sweep: SweepConfig) -> list[int]:
    """Numbers of the reports at which asha decides: the grace period, then `reduction` times as many tokens each."""
    found, at = [], math.ceil(sweep.grace * sweep.reports - 1e-9)
    while at < sweep.reports:
        found.append(max(1, at))
        at = max(1, at) * sweep.reduction
    return found


def asha(sweep: SweepConfig, mine: Losses, others: Sequence[Losses]) -> str | None:
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): the best 1/reduction of a rung go on.

    Departure, as in Ray Tune's: a trial is not paused to be promoted later, it goes on or ends, so the first ones of
    a rung go on before there is anyone to compare them with. The best of a rung always goes on.
    """
    at = len(mine)
    if at not in rungs(sweep):
        return None
    reached = [losses[at - 1] for losses in others if len(losses) >= at]
    may = max(1, (len(reached) + 1) // sweep.reduction)
    better = sum(loss < mine[-1] for loss in reached)
    if better < may and math.isfinite(mine[-1]):
        return None
    return (
        f"its loss of {mine[-1]:.4f} after {at / sweep.reports:.0%} of its tokens is not among the best {may} of the "
        f"{len(reached) + 1} trials that came so far"
    )


def median(sweep: SweepConfig, mine: Losses, others: Sequence[Losses]) -> str | None:
    """Median stopping (Golovin et al. 2017, Vizier, 3.2.1): its best loss is worse than the median of the others' mean
    losses up to the same report."""
    at = len(mine)
    reached = [statistics.fmean(losses[:at]) for losses in others if len(losses) >= at]
    if at < sweep.grace * sweep.reports or len(reached) < FEWEST_OTHERS:
        return None
    middle = statistics.median(reached)
    if min(mine) <= middle:
        return None
    return (
        f"its best loss of {min(mine):.4f} after {at / sweep.reports:.0%} of its tokens is above {middle:.4f}, the "
        f"median of the mean losses of {len(reached)} other trials"
    )


SCHEDULERS: dict[str, Callable[[SweepConfig, Losses, Sequence[Losses]], str | None]] = {"asha": asha, "median": median}
