"""Scaling laws: what a loss is predicted to be, and how a compute budget is best split into parameters and tokens.

Hoffmann et al. 2022 (Chinchilla), arXiv:2203.15556; its parametric fit repeated by Besiroglu et al. 2024,
arXiv:2404.10102; Kaplan et al. 2020, arXiv:2001.08361.

Everywhere N counts parameters, D training tokens, C = 6 N D training FLOPs, and a loss is in nats per token. The losses
are those of the papers' own data and tokenizers: differences between two plans mean more than a loss itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

PF_DAY = 1e15 * 86_400
"""FLOPs of a petaflop-day, the unit of Kaplan et al."""


class Split(NamedTuple):
    """A budget as parameters and tokens."""

    parameters: float
    tokens: float

    @property
    def flops(self) -> float:
        """C = 6 N D (Kaplan et al. 2020, section 2.1): attention over the sequence is not in it."""
        return 6 * self.parameters * self.tokens

    @property
    def ratio(self) -> float:
        """Tokens per parameter."""
        return self.tokens / self.parameters


def split(flops: float, ratio: float) -> Split:
    """A compute budget at so many tokens per parameter."""
    parameters = math.sqrt(flops / (6 * ratio))
    return Split(parameters, ratio * parameters)


@dataclass(frozen=True)
class Frontier:
    """Compute-optimal sizes as a power law, N = coefficient * C^exponent, and D = C / 6N."""

    name: str
    coefficient: float
    exponent: float
    source: str

    def at(self, flops: float) -> Split:
        """The best split of a compute budget."""
        parameters = self.coefficient * flops**self.exponent
        return Split(parameters, flops / (6 * parameters))

    def of_parameters(self, parameters: float) -> Split:
        """The budget at which a model of this size is the best one."""
        flops = (parameters / self.coefficient) ** (1 / self.exponent)
        return Split(parameters, flops / (6 * parameters))

    def of_tokens(self, tokens: float) -> Split:
        """The budget at which training on so many tokens is best."""
        flops = (6 * self.coefficient * tokens) ** (1 / (1 - self.exponent))
        return Split(flops / (6 * tokens), tokens)


@dataclass(frozen=True)
class LossFit:
    """L(N, D) = E + A / N^alpha + B / D^beta: Hoffmann et al. 2022, equation 2."""

    name: str
    e: float
    a: float
    b: float
    alpha: float
    beta: float
    source: str = ""

    def loss(self, parameters: float, tokens: float) -> float:
        return self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta

    @cached_property
    def frontier(self) -> Frontier:
        """The sizes with the least loss of each budget: Hoffmann et al. 2022, equation 4."""
        exponent = self.beta / (self.alpha + self.beta)
        g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        return Frontier(self.name, g * 6**-exponent, exponent, self.source)


PRINTED = LossFit(
    "approach3", 1.69, 406.4, 410.7, 0.34, 0.28, "parametric loss as printed, Hoffmann et al. 2022, equations 4 and 10"
)
REFIT = LossFit(
    "refit", 1.8172, 482.01, 2085.43, 0.3478, 0.3658, "parametric loss fitted again, Besiroglu et al. 2024, table 1"
)
"""Fitted to the points of Chinchilla's figure 4. Its optimum agrees with approaches 1 and 2, which that of the printed,
rounded coefficients does not: losses are predicted with it."""

FRONTIERS: dict[str, Frontier] = {
    # The exponents are those of table 2; the coefficients are the geometric mean of N / C^a over the rows of tables 3
    # and A3, which tests/plan/test_laws.py has.
    "approach1": Frontier("approach1", 0.0893, 0.50, "least loss over training curves, Hoffmann et al. 2022, table 3"),
    "approach2": Frontier("approach2", 0.1444, 0.49, "isoFLOP profiles, Hoffmann et al. 2022, table A3"),
    "approach3": PRINTED.frontier,
    "refit": REFIT.frontier,
    # N_e C^0.73. Departures: their N has no embeddings, and their C is the least compute, of batches far below B_crit.
    "kaplan": Frontier("kaplan", 1.3e9 * PF_DAY**-0.73, 0.73, "Kaplan et al. 2020, table 6"),
}
DISAGREE = 1.5
"""Optimal sizes that differ by more than this factor are said to disagree."""


def disagreements(flops: float, law: str, among: Iterable[str] = FRONTIERS) -> list[str]:
    """A sentence for each law whose best model for this budget is much smaller or larger than that of `law`."""
    own = FRONTIERS[law].at(flops)
    sentences = []
    for name in among:
        other = FRONTIERS[name].at(flops)
        factor = other.parameters / own.parameters
        if name != law and not 1 / DISAGREE <= factor <= DISAGREE:
            size = f"{1 / factor:.1f} times smaller" if factor < 1 else f"{factor:.1f} times larger"
            sentences.append(f"{name} takes a model {size} than {law}{_why(name)}")
    return sentences


def _why(name: str) -> str:
    reasons = {
        "approach3": ": its printed coefficients are rounded, and the fit ended early (Besiroglu et al. 2024)",
        "kaplan": ": its runs were short and small and counted no embeddings (Hoffmann et al. 2022, section 2)",
    }
    return reasons.get(name, "")


# --------------------------------------------------------------------------------------------------- Kaplan et al. 2020


def kaplan_loss(parameters: float, tokens: float) -> float:
    """L(N, D) = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D, equation 1.5; N without embeddings."""
    return float(((8.8e13 / parameters) ** (0.076 / 0.095) + 5.4e13 / tokens) ** 0.095)


def kaplan_loss_of_compute(flops: float) -> float:
    """L(C_min) = (C_c / C_min)^0.050, equation 1.3."""
    return float((3.1e8 * PF_DAY / flops) ** 0.050)


def kaplan_critical_batch_tokens(loss: float) -> float:
    """B_crit(L) = B* / L^(1 / 0.21) in tokens, equation 1.4: beyond it a larger batch saves hardly any steps."""
    return float(2.0e8 / loss ** (1 / 0.21))


def kaplan_least_tokens(parameters: float) -> float:
    """D >= 5e3 N^0.74, equation 4.4: with fewer unique tokens a model overfits noticeably."""
    return float(5e3 * parameters**0.74)
