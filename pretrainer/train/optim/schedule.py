"""Learning-rate schedules: pure functions of the step, so a resumed run needs no schedule state.

Each takes a `Moment` behind the warm-up and returns the multiplier of the peak learning rate. To add one, write a
function and list it in SCHEDULES; or keep it in a module of your own and set train.schedule=package.module:function.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

from pretrainer.config import TrainConfig
from pretrainer.errors import ConfigError

WSD_DECAY_SHARE = 0.2


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A step of a run, and what the run says about its schedule."""

    step: int  # counted from 0; at least warmup_steps where a schedule sees it
    total_steps: int
    warmup_steps: int
    min_ratio: float  # share of the peak to end at
    cycles: int = 1  # train.schedule_cycles
    power: float = 1.0  # train.schedule_power

    @property
    def progress(self) -> float:
        """0 at the first step behind the warm-up, 1 at the last step of the run and at any later one."""
        return min(1.0, (self.step - self.warmup_steps) / max(1, self.total_steps - 1 - self.warmup_steps))


Schedule = Callable[[Moment], float]


def constant(at: Moment) -> float:
    """The peak to the end; min_ratio is not used."""
    return 1.0


def linear(at: Moment) -> float:
    """A straight line from 1 to min_ratio."""
    return 1.0 - (1.0 - at.min_ratio) * at.progress


def cosine(at: Moment) -> float:
    """Half a cosine from 1 to min_ratio (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)."""
    return at.min_ratio + (1.0 - at.min_ratio) * 0.5 * (1.0 + math.cos(math.pi * at.progress))


def cosine_restarts(at: Moment) -> float:
    """train.schedule_cycles half cosines of equal length, each from 1 to min_ratio (SGDR, arXiv:1608.03983).

    Departure: the paper may lengthen each cycle (T_mult > 1); here, as in transformers, all have one length. The last
    step of the run is the end of the last cycle, not a restart.
    """
    cycle = at.progress * at.cycles
    within = 1.0 if at.progress == 1.0 else cycle % 1.0
    return at.min_ratio + (1.0 - at.min_ratio) * 0.5 * (1.0 + math.cos(math.pi * within))


def polynomial(at: Moment) -> float:
    """(1 - progress) to the power of train.schedule_power, from 1 to min_ratio; power 1 is `linear`."""
    return at.min_ratio + (1.0 - at.min_ratio) * (1.0 - at.progress) ** at.power


def inverse_sqrt(at: Moment) -> float:
    """sqrt(warmup / step), not below min_ratio (Vaswani et al. 2017, arXiv:1706.03762).

    It does not know the length of the run, so it ends wherever the run does. A run without warm-up counts as one of a
    single step.
    """
    warmup = max(1, at.warmup_steps)
    return max(at.min_ratio, math.sqrt(warmup / (warmup + at.step - at.warmup_steps)))


def wsd(at: Moment) -> float:
    """Warm-up, stable, decay: the peak, then 1 - sqrt over the last fifth (Hägele et al. 2024, arXiv:2405.18392).

    Departure: the fifth is of the steps after warm-up, and the decay ends at min_ratio instead of 0.
    """
    decay = max(0.0, (at.progress - (1.0 - WSD_DECAY_SHARE)) / WSD_DECAY_SHARE)
    return 1.0 - (1.0 - at.min_ratio) * math.sqrt(decay)


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "polynomial": polynomial,
    "inverse_sqrt": inverse_sqrt,
    "wsd": wsd,
}


def schedule_named(name: str) -> Schedule:
    """The function of a name in SCHEDULES, or of an import path package.module:function; raises ConfigError."""
    if name in SCHEDULES:
        return SCHEDULES[name]
    module, colon, function = name.partition(":")
    if not colon:
        known = ", ".join(sorted(SCHEDULES))
        raise ConfigError(f"train.schedule={name!r} is not known: use one of {known}, or package.module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"train.schedule={name!r} cannot be imported ({error}): give package.module:function of a module that "
            "every worker can import"
        ) from error
    if not callable(found):
        raise ConfigError(f"train.schedule={name!r} is a {type(found).__name__}: name a function of a Moment")
    return found


def multiplier(name: str, at: Moment) -> float:
    """Share of the peak learning rate at a step counted from 0: linear warm-up to 1, then the named schedule.

    The first step has 1 / warmup_steps, not 0, so that it trains; the last step of the run is at the schedule's end.
    Raises ConfigError for an unknown name, and for one of the user's that gives no finite number of 0 or more.
    """
    schedule = schedule_named(name)
    if at.step < at.warmup_steps:
        return (at.step + 1) / at.warmup_steps
    share = schedule(at)
    if not (isinstance(share, int | float) and math.isfinite(share) and share >= 0):
        raise ConfigError(
            f"train.schedule={name!r} gives {share!r} at step {at.step} of {at.total_steps}: return a finite multiplier"
            " of the peak learning rate, 0 or more"
        )
    return share


def moment(config: TrainConfig, step: int, total_steps: int) -> Moment:
    """The step as the config's schedule sees it."""
    return Moment(
        step=step,
        total_steps=total_steps,
        warmup_steps=config.warmup(total_steps),
        min_ratio=config.min_lr_ratio,
        cycles=config.schedule_cycles,
        power=config.schedule_power,
    )


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """Learning rate of a step counted from 0."""
    return config.learning_rate * multiplier(config.schedule, moment(config, step, total_steps))


def check_schedule(config: TrainConfig, total_steps: int) -> None:
    """Raise ConfigError for a schedule that cannot be found, or fails at the first, middle or last step."""
    warmup = min(config.warmup(total_steps), total_steps - 1)
    for step in (0, warmup, (warmup + total_steps) // 2, total_steps - 1):
        learning_rate(config, step, total_steps)
