"""A sweep: which fields of the config are searched, how, and which trials are ended early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrainer.errors import require

Value = bool | int | float | str

SHARED = ("run.", "init.", "data.", "tokenizer.", "evaluation.", "tracking.", "cluster.", "sweep.")
"""Sections that all trials have in common: one set of prepared tokens, one place."""
LENGTH = "train.tokens"
"""Searched, it makes the sweep a ladder for a scaling law; otherwise all trials see the same tokens."""
DERIVED = {
    "train.steps": "train.tokens of the config is the length of every trial",
    "train.validate_every_steps": "sweep.reports says how often a trial is looked at",
    "train.sample_every_steps": "a trial writes a sample at its end",
}


@dataclass(frozen=True, kw_only=True)
class DimensionConfig:
    field: str
    """The field that is searched, such as train.learning_rate."""
    values: tuple[Value, ...] = ()
    """The values to try; or give low and high."""
    low: float | None = None
    """Smallest value of a range, for search=random and optuna."""
    high: float | None = None
    """Largest value of a range."""
    log: bool = True
    """A range is searched on a logarithmic axis."""
    multiple_of: int | None = None
    """Values of a range are rounded to multiples of this, and are whole numbers."""

    def __post_init__(self) -> None:
        where = f"sweep.space[{self.field}]"
        require("." in self.field, "sweep.space[].field", self.field, "name a field as section.field")
        require(self.field not in DERIVED, where, self.field, DERIVED.get(self.field, ""))
        # It changes what is drawn from the prepared tokens, and not the tokens. Shares are searched as weights.
        is_mixture = self.field.startswith("data.sources.") and self.field.endswith(".weight")
        require(
            not self.field.startswith(SHARED) or is_mixture,
            where,
            self.field,
            "all trials train on the same prepared tokens: search fields of model, train, stability or monitor, or "
            "data.sources.N.weight",
        )
        is_range = self.low is not None and self.high is not None
        require(
            bool(self.values) != is_range and (self.low is None) == (self.high is None),
            where,
            (list(self.values), self.low, self.high),
            "give values, or low and high",
        )
        require(len(set(self.values)) == len(self.values), f"{where}.values", list(self.values), "name each value once")
        if self.low is not None and self.high is not None:
            require(self.low < self.high, f"{where}.low", self.low, f"use less than high={self.high:g}")
            require(not self.log or self.low > 0, f"{where}.low", self.low, "use a positive number, or log=false")
        multiple = self.multiple_of
        require(multiple is None or multiple >= 1, f"{where}.multiple_of", multiple, "use 1 or more")


@dataclass(frozen=True, kw_only=True)
class TargetConfig:
    parameters: float | None = None
    """Parameters of the model that the sweep is done for; its learning rate and batch are then extrapolated."""
    tokens: float | None = None
    """Tokens that this model is to be trained on; 20 for each parameter by default."""

    def __post_init__(self) -> None:
        for name in ("parameters", "tokens"):
            value = getattr(self, name)
            require(value is None or value > 0, f"sweep.target.{name}", value, "use a positive number")
        require(
            self.tokens is None or self.parameters is not None,
            "sweep.target.tokens",
            self.tokens,
            "give sweep.target.parameters too",
        )


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    space: tuple[DimensionConfig, ...] = ()
    """What is searched: fields, and their values or ranges."""
    search: Literal["grid", "random", "optuna"] = "grid"
    """grid tries every combination of the values; random draws; optuna proposes from what was found (TPE)."""
    trials: int | None = None
    """How many trials search=random or optuna makes; a grid has as many as combinations."""
    seed: int = 0
    """Seed of random and optuna; the trials' own seed is run.seed, the same for all."""
    reports: int = 8
    """Each trial measures its held-out loss so many times, at equal distances in tokens."""
    scheduler: Literal["none", "asha", "median"] = "none"
    """none trains every trial to its end; asha ends those that are not among the best 1/reduction at a rung; median
    those that are worse than the median of the others."""
    grace: float = 0.25
    """Share of a trial's tokens before it may be ended; the first rung of asha."""
    reduction: int = 4
    """asha: only the best 1/reduction of the trials that reached a rung go on, to reduction times as many tokens."""
    max_concurrent_trials: int = 1
    """Trials that train at the same time."""
    max_failures: int = 1
    """A trial whose driver was lost goes on from its checkpoint so many times."""
    retry_failed: bool = False
    """The same command also starts trials again that had failed."""
    target: TargetConfig = TargetConfig()
    """The model that the sweep is done for."""

    def __post_init__(self) -> None:
        fields = [dimension.field for dimension in self.space]
        require(len(set(fields)) == len(fields), "sweep.space", fields, "name every field once")
        ranges = [dimension.field for dimension in self.space if not dimension.values]
        require(
            self.search != "grid" or not ranges,
            "sweep.search",
            self.search,
            f"a grid needs values, and {', '.join(ranges)} has a range: give values, or use random or optuna",
        )
        require(
            self.search == "grid" or not self.space or (self.trials or 0) >= 1,
            "sweep.trials",
            self.trials,
            f"search={self.search} needs to know how many trials to make: use 1 or more",
        )
        require(
            self.search != "grid" or self.trials is None,
            "sweep.trials",
            self.trials,
            "a grid has as many trials as its values have combinations: leave it out",
        )
        require(
            self.scheduler == "none" or LENGTH not in fields,
            "sweep.scheduler",
            self.scheduler,
            f"trials of different {LENGTH} cannot be compared at their reports: use none",
        )
        for name in ("reports", "max_concurrent_trials"):
            require(getattr(self, name) >= 1, f"sweep.{name}", getattr(self, name), "use 1 or more")
        require(0 < self.grace <= 1, "sweep.grace", self.grace, "use a share above 0, to 1")
        require(self.reduction >= 2, "sweep.reduction", self.reduction, "use 2 or more")
        require(self.max_failures >= 0, "sweep.max_failures", self.max_failures, "use 0 or more")
