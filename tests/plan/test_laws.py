"""Scaling laws against the tables of their papers, and what must hold of any of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrainer.plan.laws import (
    FRONTIERS,
    PF_DAY,
    PRINTED,
    REFIT,
    Split,
    disagreements,
    kaplan_critical_batch_tokens,
    kaplan_least_tokens,
    kaplan_loss,
    kaplan_loss_of_compute,
    split,
)

GOPHER = 5.76e23  # FLOPs, the budget of Gopher and of Chinchilla
BUDGETS = st.floats(14, 28).map(lambda power: 10.0**power)
NAMES = st.sampled_from(list(FRONTIERS))

# (parameters, FLOPs): Hoffmann et al. 2022, tables 3 and A3.
TABLES = {
    "approach1": [
        (400e6, 1.92e19), (1e9, 1.21e20), (10e9, 1.23e22), (67e9, 5.76e23), (175e9, 3.85e24), (280e9, 9.90e24),
        (520e9, 3.43e25), (1e12, 1.27e26), (10e12, 1.30e28),
    ],
    "approach2": [
        (400e6, 1.84e19), (1e9, 1.20e20), (10e9, 1.32e22), (67e9, 6.88e23), (175e9, 4.54e24), (280e9, 1.18e25),
        (520e9, 4.19e25), (1e12, 1.59e26), (10e12, 1.75e28),
    ],
}  # fmt: skip
ROWS = [(name, *row) for name, rows in TABLES.items() for row in rows]

# (parameters, tokens, FLOPs): runs of the field.
KNOWN = {
    "Chinchilla": (70e9, 1.4e12, 5.76e23),
    "GPT-3": (175e9, 300e9, 3.1e23),
    "Llama 2 70B": (70e9, 2e12, 8.4e23),
    "SmolGPT": (27.5e6, 4e9, 6.6e17),
}


@pytest.mark.parametrize("name", KNOWN)
def test_compute_of_known_runs(name: str) -> None:
    parameters, tokens, flops = KNOWN[name]
    assert Split(parameters, tokens).flops == pytest.approx(flops, rel=0.05)


@pytest.mark.parametrize(("name", "parameters", "flops"), ROWS)
def test_sizes_are_those_of_the_papers_tables(name: str, parameters: float, flops: float) -> None:
    assert FRONTIERS[name].at(flops).parameters == pytest.approx(parameters, rel=0.05)
    assert FRONTIERS[name].of_parameters(parameters).flops == pytest.approx(flops, rel=0.1)


@pytest.mark.parametrize("name", TABLES)
def test_coefficients_are_the_geometric_mean_over_the_table(name: str) -> None:
    frontier = FRONTIERS[name]
    logs = [math.log(parameters / flops**frontier.exponent) for parameters, flops in TABLES[name]]
    assert frontier.coefficient == pytest.approx(math.exp(sum(logs) / len(logs)), rel=1e-3)


def test_the_split_of_the_gopher_budget() -> None:
    sizes = {name: frontier.at(GOPHER).parameters for name, frontier in FRONTIERS.items()}
    assert sizes["approach1"] == pytest.approx(67e9, rel=0.05)
    assert sizes["approach2"] == pytest.approx(63e9, rel=0.05)  # figure 3
    assert sizes["approach3"] == pytest.approx(32e9, rel=0.05)  # with the printed coefficients
    assert sizes["refit"] == pytest.approx(70e9, rel=0.05)  # agrees with 1 and 2


@pytest.mark.parametrize("fit", [PRINTED, REFIT])
def test_the_frontier_of_a_loss_is_where_the_loss_is_least(fit) -> None:
    best = fit.frontier.at(GOPHER)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
        parameters = best.parameters * factor
        assert fit.loss(parameters, GOPHER / (6 * parameters)) > fit.loss(*best)


def test_loss_of_chinchilla_by_the_printed_fit() -> None:
    # 1.69 + 406.4 / (70e9)^0.34 + 410.7 / (1.4e12)^0.28, worked out by hand
    assert PRINTED.loss(70e9, 1.4e12) == pytest.approx(1.69 + 0.0836 + 0.1632, abs=5e-4)


@given(NAMES, BUDGETS)
def test_a_budget_comes_back_from_its_parameters_and_from_its_tokens(name: str, flops: float) -> None:
    frontier = FRONTIERS[name]
    best = frontier.at(flops)
    assert best.flops == pytest.approx(flops, rel=1e-9)
    assert frontier.of_parameters(best.parameters).flops == pytest.approx(flops, rel=1e-6)
    assert frontier.of_tokens(best.tokens).flops == pytest.approx(flops, rel=1e-6)


@given(NAMES, BUDGETS, st.floats(1.01, 100))
def test_more_compute_is_more_of_both(name: str, flops: float, factor: float) -> None:
    less, more = FRONTIERS[name].at(flops), FRONTIERS[name].at(flops * factor)
    assert more.parameters > less.parameters and more.tokens > less.tokens


@given(BUDGETS, st.floats(1, 5000))
def test_a_ratio_splits_a_budget_into_itself(flops: float, ratio: float) -> None:
    found = split(flops, ratio)
    assert found.flops == pytest.approx(flops) and found.ratio == pytest.approx(ratio)


@given(st.floats(1e6, 1e12), st.floats(1e8, 1e14), st.floats(1.01, 10))
def test_losses_fall_with_parameters_and_with_tokens(parameters: float, tokens: float, factor: float) -> None:
    for loss in (PRINTED.loss, REFIT.loss, kaplan_loss):
        here = loss(parameters, tokens)
        assert loss(parameters * factor, tokens) < here and loss(parameters, tokens * factor) < here


def test_disagreement_is_said_of_those_that_disagree() -> None:
    said = disagreements(GOPHER, "approach1")
    assert [sentence.split()[0] for sentence in said] == ["approach3", "kaplan"]
    assert "2.1 times smaller than approach1" in said[0] and "rounded" in said[0]
    assert "times larger" in said[1]
    assert disagreements(GOPHER, "approach1", ["approach2", "refit", "approach1"]) == []


def test_kaplan() -> None:
    # Kaplan et al. 2020, equations 1.1 and 1.2: the limits of equation 1.5.
    assert kaplan_loss(1e9, 1e30) == pytest.approx((8.8e13 / 1e9) ** 0.076)
    assert kaplan_loss(1e30, 1e9) == pytest.approx((5.4e13 / 1e9) ** 0.095)
    assert FRONTIERS["kaplan"].at(PF_DAY).parameters == pytest.approx(1.3e9)  # table 6
    assert FRONTIERS["kaplan"].at(10 * PF_DAY).parameters == pytest.approx(1.3e9 * 10**0.73)
    assert kaplan_loss_of_compute(3.1e8 * PF_DAY) == pytest.approx(1.0)
    assert kaplan_loss_of_compute(PF_DAY) == pytest.approx(3.1e8**0.05)
    assert kaplan_critical_batch_tokens(1.0) == pytest.approx(2e8)
    assert kaplan_critical_batch_tokens(2.0) == pytest.approx(2e8 / 2 ** (1 / 0.21))
    # Section 4.2: models of up to 1e9 parameters train on 22 billion tokens with little overfitting.
    assert kaplan_least_tokens(1e9) == pytest.approx(22e9, rel=0.05)
