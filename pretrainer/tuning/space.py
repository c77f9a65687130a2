"""The search space: parameters of trials, and the config that each of them is.

    next_parameters(sweep, known)        what to try next, a function of the sweep's config and of what was tried
    trial_config(base, parameters, …)    the whole config of one trial

A batch is a part of the order of the data: steps, warm-up and every cadence of a trial follow from it, so that all
trials see the same tokens in the same order and their schedules end together.
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pretrainer.config import Config, DimensionConfig, SweepConfig, TrainConfig
from pretrainer.config.sweep import LENGTH, Value
from pretrainer.config_fields import locate
from pretrainer.config_load import parse_config, to_yaml
from pretrainer.errors import ConfigError
from pretrainer.tuning.optuna_search import Known, propose

Parameters = dict[str, Value]
"""field -> value of one trial."""

LEARNING_RATE = "train.learning_rate"
BATCH = "train.global_batch_tokens"
SHORT = {LEARNING_RATE: "lr", BATCH: "batch"}
WARMUP = ("train.warmup_steps", "train.warmup_ratio")
DRAWS = 100


# ------------------------------------------------------------------------------------------------------ parameters


def grid(space: Sequence[DimensionConfig]) -> list[Parameters]:
    """Every combination, from the middle of the space outwards.

    A good trial at the beginning lets a scheduler end the bad ones sooner, and the middle of a sweep that is
    interrupted is known.
    """

    def far(places: Sequence[int]) -> float:
        return sum(abs(2 * at - (len(d.values) - 1)) / len(d.values) for at, d in zip(places, space, strict=True))

    every = itertools.product(*(range(len(dimension.values)) for dimension in space))
    return [
        {dimension.field: dimension.values[at] for at, dimension in zip(places, space, strict=True)}
        for places in sorted(every, key=far)
    ]


def count_trials(sweep: SweepConfig) -> int:
    """How many trials the sweep has."""
    return len(grid(sweep.space)) if sweep.search == "grid" else sweep.trials or 0


def next_parameters(sweep: SweepConfig, known: Sequence[Known]) -> Parameters | None:
    """What the next trial tries, none of `known` again; None when there is nothing left to try."""
    tried = [trial.parameters for trial in known]
    if sweep.search == "grid":
        return next((parameters for parameters in grid(sweep.space) if parameters not in tried), None)
    if len(known) >= count_trials(sweep):
        return None
    if sweep.search == "optuna":
        return propose(sweep.space, sweep.seed, known)
    draws = (draw(sweep.space, sweep.seed, len(known), attempt) for attempt in range(DRAWS))
    return next((parameters for parameters in draws if parameters not in tried), None)


def draw(space: Sequence[DimensionConfig], seed: int, number: int, attempt: int = 0) -> Parameters:
    """Random parameters: a function of the seed and of the trial's number alone."""
    source = random.Random(f"{seed}/{number}/{attempt}")
    return {dimension.field: _draw(dimension, source) for dimension in space}


def _draw(dimension: DimensionConfig, source: random.Random) -> Value:
    if dimension.low is None or dimension.high is None:
        return source.choice(dimension.values)
    share = source.random()
    if dimension.log:
        return rounded(dimension, dimension.low * (dimension.high / dimension.low) ** share)
    return rounded(dimension, dimension.low + (dimension.high - dimension.low) * share)


def rounded(dimension: DimensionConfig, value: float) -> Value:
    """A value of a range as the config takes it: three digits, or a multiple."""
    if dimension.multiple_of is not None:
        return max(1, round(value / dimension.multiple_of)) * dimension.multiple_of
    _found, hint = locate(dimension.field.split("."))
    return round(value) if hint is int else float(f"{value:.3g}")


def trial_name(number: int, parameters: Mapping[str, Value]) -> str:
    """Such as 007-lr0.004-batch2048: the name of the trial's run folder."""
    words = [f"{SHORT.get(name, name.rpartition('.')[2])}{_plain(value)}" for name, value in parameters.items()]
    text = "-".join([f"{number:03d}", *words])
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in text)[:120]


def _plain(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# ----------------------------------------------------------------------------------------------------------- config


class Horizon(NamedTuple):
    """Length of a trial: `reports` stretches of so many steps."""

    steps: int
    report_steps: int


def horizon(tokens: int, batch_tokens: int, reports: int) -> Horizon:
    """The whole steps of this batch that are nearest to so many tokens in equal stretches."""
    each = max(1, round(tokens / (reports * batch_tokens)))
    return Horizon(each * reports, each)


def total_tokens(base: Config, parameters: Mapping[str, Value] | None = None) -> int:
    """Tokens of a trial: those of the config, the same for all unless its parameters have others, rounded so that all
    batches of the space have whole steps."""
    own = base.total_steps * base.train.global_batch_tokens
    tokens = float((parameters or {}).get(LENGTH, own))
    slot = base.data.seq_len * base.data.slot_sequences  # what is no multiple of it fails alone
    batches = [int(v) for d in base.sweep.space if d.field == BATCH for v in d.values if int(v) % slot == 0]
    unit = base.sweep.reports * math.lcm(*(batches or [base.train.global_batch_tokens]))
    return max(1, round(tokens / unit)) * unit


def with_parameters(config: Config, parameters: Mapping[str, Value]) -> Config:
    """The config with these fields set; ConfigError where one of them is not possible."""
    overrides = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in sorted(
        parameters.items(), key=lambda item: item[0] != BATCH)]  # fmt: skip
    return parse_config(to_yaml(config), overrides, "the sweep's config")


def trial_config(base: Config, parameters: Mapping[str, Value], name: str, folder: str, data_from: str) -> Config:
    """The trial as a run of its own below `folder`, on the tokens of `data_from`.

    What the config says in steps (warm-up, cadences) is meant for its own batch: it becomes as many tokens here.
    """
    config = with_parameters(base, parameters)
    batch, own = config.train.global_batch_tokens, base.train.global_batch_tokens
    length = horizon(total_tokens(base, parameters), batch, base.sweep.reports)

    def as_long(steps: int) -> int:
        return max(1, round(steps * own / batch))

    train = replace(
        same_warmup(base, config.train, parameters),
        steps=length.steps,
        tokens=None,
        validate_every_steps=length.report_steps,
        sample_every_steps=length.steps,
        checkpoint_every_steps=as_long(config.train.checkpoint_every_steps),
        log_every_steps=as_long(config.train.log_every_steps),
        milestone_every_steps=None,
        keep_best=False,
        export="newest",
    )
    every = config.monitor.every_steps
    # A trial is compared by its held-out loss at its end: nothing else may end it. Its tasks can be scored later.
    evaluation = replace(
        config.evaluation, medium_every_steps=None, full_every_steps=None, stop_after_validations=None,
        best_by="val_loss",
    )  # fmt: skip
    return replace(
        config,
        run=replace(config.run, name=name, storage=folder, data_from=data_from, copy_to=None),
        train=train,
        evaluation=evaluation,
        monitor=replace(config.monitor, every_steps=as_long(every) if every else 0, profile_every_steps=0),
        sweep=SweepConfig(),
    )


def same_warmup(base: Config, train: TrainConfig, parameters: Mapping[str, Value]) -> TrainConfig:
    """The share of the tokens that the sweep's config warms up with, unless it is searched itself."""
    if any(name in parameters for name in WARMUP):
        return train
    share = min(1.0, base.train.warmup(base.total_steps) / base.total_steps)
    return replace(train, warmup_steps=None, warmup_ratio=float(f"{share:.4g}"))


def check_space(config: Config) -> None:
    """ConfigError for a sweep that cannot be; a value that one trial cannot have is that trial's failure, not this."""
    sweep = config.sweep
    if not sweep.space:
        raise ConfigError(
            "sweep.space=[] is not possible: name the fields to search, as in sweep.space=[{field: "
            "train.learning_rate, values: [1e-3, 3e-3]}], or use --config configs/sweep.yaml"
        )
    for dimension in sweep.space:
        path = dimension.field.split(".")
        found, _hint = locate(path)
        if found != path:
            raise ConfigError(
                f"sweep.space[{dimension.field}] is not a field of the config: `--help` lists them all"
            )
    lengths = [int(v) for d in sweep.space if d.field == LENGTH for v in (d.values or (d.low, d.high)) if v]
    largest = largest_batch(config)
    for asked in lengths or [config.total_steps * config.train.global_batch_tokens]:
        if asked >= sweep.reports * largest and asked / 1.25 < total_tokens(config, {LENGTH: asked}) < asked * 1.25:
            continue
        raise ConfigError(
            f"sweep.reports={sweep.reports} is not possible: the {asked:,} tokens of a trial are {asked // largest:,} "
            f"steps of {largest:,} tokens, and cannot be cut into so many whole steps at every batch; use fewer "
            "reports, or more train.tokens"
        )


def longest(config: Config) -> int:
    """Tokens of the longest trial."""
    lengths = [int(v) for d in config.sweep.space if d.field == LENGTH for v in (d.values or (d.low, d.high)) if v]
    return max((total_tokens(config, {LENGTH: length}) for length in lengths), default=total_tokens(config))


def largest_batch(config: Config) -> int:
    """Tokens of a step of the trials with the largest batch."""
    batches = [int(v) for d in config.sweep.space if d.field == BATCH for v in (d.values or (d.low, d.high)) if v]
    return max(batches, default=config.train.global_batch_tokens)


def tokens_of(base: Config, parameters: Mapping[str, Value]) -> int:
    """Tokens that a whole trial of these parameters sees."""
    batch = int(parameters.get(BATCH, base.train.global_batch_tokens))
    return horizon(total_tokens(base, parameters), batch, base.sweep.reports).steps * batch
