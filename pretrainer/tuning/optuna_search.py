"""Optuna's TPE sampler as a pure function: what was found so far -> what to try next.

The study is made anew from the trials' records each time, so that nothing but those has to be kept, and a sweep that
goes on after a crash proposes what it would have proposed. Only this module knows Optuna.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from pretrainer.config import DimensionConfig
from pretrainer.config.sweep import Value

RANDOM_TRIALS = 8
"""Trials before the sampler believes what it has seen."""


class Known(NamedTuple):
    """A trial that was tried, or is being tried: its loss is None until it ends, and if it failed."""

    parameters: dict[str, Value]
    loss: float | None
    is_over: bool


def propose(space: Sequence[DimensionConfig], seed: int, known: Sequence[Known]) -> dict[str, Value]:
    """Parameters for the next trial. Trials that are still running keep others away from where they are."""
    import optuna

    optuna.logging.set_verbosity(logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=seed * 1_000_003 + len(known), n_startup_trials=RANDOM_TRIALS, constant_liar=True, multivariate=True,
        warn_independent_sampling=False,
    )  # fmt: skip
    study = optuna.create_study(sampler=sampler)
    distributions = {dimension.field: _distribution(dimension) for dimension in space}
    states = optuna.trial.TrialState
    for trial in known:
        state = (states.FAIL if trial.loss is None else states.COMPLETE) if trial.is_over else states.RUNNING
        study.add_trial(
            optuna.trial.create_trial(
                params=trial.parameters, distributions=distributions, state=state,
                value=trial.loss if state == states.COMPLETE else None,
            )  # fmt: skip
        )
    found = study.ask(distributions).params
    return {dimension.field: _plain(dimension, found[dimension.field]) for dimension in space}


def _plain(dimension: DimensionConfig, value: Any) -> Value:
    """Four digits are enough for a person, inside the range."""
    if dimension.low is None or dimension.high is None or not isinstance(value, float):
        return value
    return min(max(float(f"{value:.4g}"), dimension.low), dimension.high)


def _distribution(dimension: DimensionConfig) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    low, high, step = dimension.low, dimension.high, dimension.multiple_of
    if low is None or high is None:
        return CategoricalDistribution(dimension.values)
    if step is not None:
        return IntDistribution(-(-int(low) // step) * step, int(high) // step * step, step=step)
    return FloatDistribution(low, high, log=dimension.log)
