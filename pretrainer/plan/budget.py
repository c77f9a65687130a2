"""What a person can ask for, and the parameters and tokens that follow: by C = 6 N D, and by a law if need be."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from pretrainer.errors import ConfigError, require
from pretrainer.plan.hardware import Gpu, flops_of_dollars, flops_of_hours
from pretrainer.plan.laws import FRONTIERS, Frontier, Split, split

COMPUTE = ("flops", "gpu_hours", "dollars")
BEST = "approach1"
"""The law that decides where nothing else does; about 20 tokens per parameter at every budget."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A budget: one number, or two that leave the third one to be derived."""

    flops: float | None = None
    """Training FLOPs."""
    gpu_hours: float | None = None
    """Hours of one GPU of the kind asked for."""
    dollars: float | None = None
    """At the price of that GPU."""
    parameters: float | None = None
    """Of the model."""
    preset: str | None = None
    """A model of pretrainer/model/presets.py, whose parameters are then those that are asked for."""
    tokens: float | None = None
    """Of training."""
    ratio: float | None = None
    """Tokens per parameter, in place of the law."""
    law: str = BEST
    """A name in pretrainer/plan/laws.py: FRONTIERS."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("law", "preset") and value is not None:
                require(0 < value < math.inf, option(field.name), value, "use a positive number")
        known = ", ".join(FRONTIERS)
        require(self.law in FRONTIERS, "--law", self.law, f"use one of {known}")
        compute = [name for name in COMPUTE if getattr(self, name) is not None]
        others = [name for name in ("parameters", "preset", "tokens", "ratio") if getattr(self, name) is not None]
        given = [*compute, *others]
        twice = len(compute) > 1 or {"parameters", "preset"} <= {*others}
        if twice or len(given) > 2 or given in ([], ["ratio"]):
            raise ConfigError(
                f"{' and '.join(map(option, given)) or 'nothing'} cannot be planned for: give one of --flops, "
                "--gpu-hours, --dollars, --parameters (or --preset) and --tokens, or two of which one is parameters or "
                "tokens; --tokens-per-parameter goes with any single one"
            )

    @property
    def is_budget(self) -> bool:
        """Compute is given, so the run must not need more."""
        return any(getattr(self, name) is not None for name in COMPUTE)


def option(name: str) -> str:
    """The command-line option of a field of Ask."""
    return "--" + {"ratio": "tokens-per-parameter"}.get(name, name).replace("_", "-")


def compute_of(ask: Ask, gpu: Gpu) -> float | None:
    """The FLOPs that are asked for, None where others are to follow."""
    if ask.gpu_hours is not None:
        return flops_of_hours(ask.gpu_hours, gpu)
    return ask.flops if ask.dollars is None else flops_of_dollars(ask.dollars, gpu)


def resolve_ask(ask: Ask, gpu: Gpu, of_preset: float | None = None, share: float = 1.0) -> Split:
    """Parameters and tokens; what is asked for stays as it is, the rest follows.

    of_preset: the preset's parameters. share: the part of the compute that is left for 6 N D, attention being the rest.
    """
    compute, tokens, ratio = compute_of(ask, gpu), ask.tokens, ask.ratio
    flops = None if compute is None else share * compute
    parameters = ask.parameters if of_preset is None else of_preset
    if parameters is not None and tokens is not None:
        return Split(parameters, tokens)
    if flops is not None and parameters is not None:
        return Split(parameters, flops / (6 * parameters))
    if flops is not None and tokens is not None:
        return Split(flops / (6 * tokens), tokens)
    if ratio is not None:
        return _by_ratio(flops, parameters, tokens, ratio)
    return _by_law(flops, parameters, tokens, FRONTIERS[ask.law])


def _by_ratio(flops: float | None, parameters: float | None, tokens: float | None, ratio: float) -> Split:
    if flops is not None:
        return split(flops, ratio)
    if parameters is not None:
        return Split(parameters, ratio * parameters)
    assert tokens is not None
    return Split(tokens / ratio, tokens)


def _by_law(flops: float | None, parameters: float | None, tokens: float | None, law: Frontier) -> Split:
    if flops is not None:
        return law.at(flops)
    if parameters is not None:
        return law.of_parameters(parameters)
    assert tokens is not None
    return law.of_tokens(tokens)
