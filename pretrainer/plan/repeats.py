"""Two ways to leave the compute-optimal split: smaller models trained longer, and data that has to be repeated.

Sardana et al. 2024, arXiv:2401.00448 (inference counts too); Muennighoff et al. 2023, arXiv:2305.16264 (repeats).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pretrainer.plan.laws import LossFit, Split, split

RATIOS = (20, 50, 100, 200, 500, 1000, 2000)
"""Tokens per parameter that the table shows."""
REPEAT_DECAY, EXCESS_DECAY = 15.387756, 5.309743
"""R*_D and R*_N of Muennighoff et al. 2023, as in their repository (huggingface/datablations): how fast repeated tokens
and excess parameters lose their worth."""


class Overtraining(NamedTuple):
    """One number of tokens per parameter: what it costs at the same compute, and what at the same loss."""

    ratio: float
    same_compute: Split
    penalty: float  # loss above the least one of that compute, in nats
    same_loss: Split
    extra_compute: float  # training FLOPs over those of the optimum, as a share of them
    pays_after_tokens: float  # of inference over the model's life; inf where the model is not smaller


def overtraining(fit: LossFit, flops: float, ratios: Iterable[float] = RATIOS) -> list[Overtraining]:
    """Beside the split of least loss of a budget. A model pays when what it saves in inference is what it cost more.

    Sardana et al. 2024, section 2: least 6 N D + 2 N I over (N, D) with the loss given, I the tokens of inference.
    Departure: their answer is the best N for an I; this is the I at which a given ratio costs as much as the optimum.
    """
    best = fit.frontier.at(flops)
    loss = fit.loss(*best)
    rows = []
    for ratio in ratios:
        compute, quality = split(flops, ratio), with_loss(fit, loss, ratio)
        extra = max(0.0, quality.flops - best.flops)
        saved = 2 * (best.parameters - quality.parameters)  # FLOPs per token
        pays = extra / saved if saved > 0 else math.inf
        rows.append(Overtraining(ratio, compute, fit.loss(*compute) - loss, quality, extra / best.flops, pays))
    return rows


def with_loss(fit: LossFit, loss: float, ratio: float) -> Split:
    """The split with this loss at so many tokens per parameter; `loss` must be above the fit's E."""
    assert loss > fit.e, (loss, fit.e)

    def above(log_parameters: float) -> bool:
        parameters = math.exp(log_parameters)
        return fit.loss(parameters, ratio * parameters) > loss

    parameters = math.exp(_bisect(above, math.log(1.0), math.log(1e30)))
    return Split(parameters, ratio * parameters)


def _bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition that holds at `low` and not at `high` changes."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2


def effective(drawn: float, unique: float, decay: float = REPEAT_DECAY) -> float:
    """What drawing so often from so many unique ones is worth: U + U R* (1 - e^(-R / R*)), R = drawn / U - 1.

    Muennighoff et al. 2023, equations 5 (tokens) and 6 (parameters). Never more than U (1 + R*).
    """
    if drawn <= unique:
        return drawn
    repeats = drawn / unique - 1
    return unique + unique * decay * -math.expm1(-repeats / decay)


def repeated_loss(fit: LossFit, parameters: float, tokens: float, unique: float) -> float:
    """Loss when only so many of the tokens are different ones: Muennighoff et al. 2023, section 3.1.

    Departure: their decays are used with whatever fit is given; they fitted both together, to C4.
    """
    if tokens <= unique:
        return fit.loss(parameters, tokens)
    return fit.loss(effective_parameters(fit, parameters, unique), effective(tokens, unique))


def effective_parameters(fit: LossFit, parameters: float, unique: float) -> float:
    """Parameters beyond those that are best for the unique tokens lose worth too: U_N and equation 6 of the same."""
    enough = fit.frontier.of_tokens(unique).parameters
    return effective(parameters, min(enough, parameters), EXCESS_DECAY)


def best_with_repeats(fit: LossFit, flops: float, unique: float) -> Split:
    """The split of least loss of a budget when only so many tokens are different ones."""
    free = fit.frontier.at(flops)
    if free.tokens <= unique:
        return free
    fewest, most = math.log(free.parameters / 100), math.log(free.parameters * 100)

    def at(log_parameters: float) -> Split:
        parameters = math.exp(log_parameters)
        return Split(parameters, flops / (6 * parameters))

    def loss(log_parameters: float) -> float:
        here = at(log_parameters)
        return repeated_loss(fit, here.parameters, here.tokens, unique)

    grid = [fewest + (most - fewest) * step / 2000 for step in range(2001)]
    return at(min(grid, key=loss))
