"""Sweeps for tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pretrainer.config import Config
from pretrainer.config_load import load_config
from pretrainer.tuning.fit import Point
from pretrainer.tuning.records import Progress, Report, Trial
from pretrainer.tuning.report import Sweep
from pretrainer.tuning.space import BATCH, LEARNING_RATE, total_tokens, trial_name

RATES = "{field: train.learning_rate, values: [2e-3, 6e-3, 18e-3, 54e-3]}"
BATCHES = "{field: train.global_batch_tokens, values: [1024, 2048, 4096]}"


def sweep_config(*overrides: str, space: str = f"[{BATCHES}, {RATES}]") -> Config:
    """The quickstart with a sweep of 3 batches x 4 rates."""
    return load_config(None, [f"sweep.space={space}", *overrides])


def bowl(batch: int, rate: float) -> float:
    """A loss with its optimum at 8e-3 for 2,048 tokens that moves with the root of the batch."""
    best = 8e-3 * math.sqrt(batch / 2048)
    return 3.0 + 0.1 * math.log(rate / best) ** 2 + 0.02 * math.log2(batch / 1024)


def points(noise: Sequence[float] = (0.0,)) -> list[Point]:
    rates, batches = (2e-3, 6e-3, 18e-3, 54e-3), (1024, 2048, 4096)
    pairs = [(batch, rate) for batch in batches for rate in rates]
    return [
        Point(batch, rate, bowl(batch, rate) + noise[i % len(noise)]) for i, (batch, rate) in enumerate(pairs)
    ]


def trial(config: Config, number: int, batch: int, rate: float, reports: int = 8, **progress: Any) -> Trial:
    """A trial that has come so far, with losses that fall to the bowl's."""
    each = total_tokens(config) // config.sweep.reports
    seen = tuple(
        Report(n * each // batch, n * each, bowl(batch, rate) + 2.0 * (1 - n / 8), 1.0) for n in range(1, reports + 1)
    )
    parameters = {BATCH: batch, LEARNING_RATE: rate}
    values: dict[str, Any] = {"status": "completed" if reports == 8 else "stopped", "trained_tokens": reports * each}
    found = Progress(**{**values, "reports": seen, "noise_scale_tokens": 3000.0, **progress})
    return Trial(number, trial_name(number, parameters), parameters, found)


def finished(config: Config) -> list[Trial]:
    return [trial(config, n, p.batch_tokens, p.learning_rate) for n, p in enumerate(points())]


def sweep(config: Config, trials: Sequence[Trial]) -> Sweep:
    from pretrainer.tuning.fit import valleys
    from pretrainer.tuning.report import points as points_of

    return Sweep(config, trials, valleys(points_of(config, trials)), 2048)
