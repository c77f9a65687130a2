"""Learning-rate schedules: pure functions of the step, so a resumed run needs no schedule state.

Each takes progress in [0, 1] after warm-up (0 at the first step at the peak, 1 at the last step of the run) and the
share of the peak to end at, and returns the multiplier of the peak learning rate. To add one, write a function and
list it in SCHEDULES.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from pretrainer.config import TrainConfig
from pretrainer.errors import ConfigError

WSD_DECAY_SHARE = 0.2


def constant(progress: float, min_ratio: float) -> float:
    """The peak to the end; min_ratio is not used."""
    return 1.0


def linear(progress: float, min_ratio: float) -> float:
    """A straight line from 1 to min_ratio."""
    return 1.0 - (1.0 - min_ratio) * progress


def cosine(progress: float, min_ratio: float) -> float:
    """Half a cosine from 1 to min_ratio (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)."""
    return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def wsd(progress: float, min_ratio: float) -> float:
    """Warm-up, stable, decay: the peak, then 1 - sqrt over the last fifth (Hägele et al. 2024, arXiv:2405.18392).

    Departure: the fifth is of the steps after warm-up, and the decay ends at min_ratio instead of 0.
    """
    decay = max(0.0, (progress - (1.0 - WSD_DECAY_SHARE)) / WSD_DECAY_SHARE)
    return 1.0 - (1.0 - min_ratio) * math.sqrt(decay)


SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "wsd": wsd,
}


def multiplier(name: str, step: int, total_steps: int, warmup_steps: int, min_ratio: float) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up to 1, then the named schedule.

    The first step has 1 / warmup_steps, not 0, so that it trains; the last step of the run is at the schedule's end.
    Raises ConfigError for an unknown name.
    """
    if name not in SCHEDULES:
        raise ConfigError(f"train.schedule={name!r} is not known: use one of {', '.join(sorted(SCHEDULES))}")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return SCHEDULES[name](min(1.0, progress), min_ratio)


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Learning rate of a step counted from 0."""
    share = multiplier(config.schedule, step, total_steps, config.warmup_steps, config.min_lr_ratio)
    return config.learning_rate * share
