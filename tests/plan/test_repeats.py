"""Longer training of smaller models, and repeated data."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrainer.plan.laws import REFIT, LossFit
from pretrainer.plan.repeats import (
    RATIOS,
    REPEAT_DECAY,
    best_with_repeats,
    effective,
    overtraining,
    repeated_loss,
    with_loss,
)

# The fit that Muennighoff et al. 2023 publish together with two losses and an allocation (huggingface/datablations).
THEIRS = LossFit("c4", math.exp(0.6254804), math.exp(6.255414), math.exp(7.3049974), 0.3526596, 0.3526596)


def test_losses_of_the_two_models_of_their_figure() -> None:
    assert repeated_loss(THEIRS, 6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, rel=1e-9)
    assert repeated_loss(THEIRS, 8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, rel=1e-9)


def test_their_best_allocation() -> None:
    best = best_with_repeats(THEIRS, 6 * 8.67e9 * 178e9, 25e9)
    assert best.parameters == pytest.approx(6.8e9, rel=0.01)
    assert best.tokens == pytest.approx(227e9, rel=0.01) and best.tokens / 25e9 == pytest.approx(9.1, rel=0.01)


def test_four_passes_are_nearly_as_good_as_new_tokens_and_the_worth_is_bounded() -> None:
    assert effective(4e9, 1e9) > 0.92 * 4e9
    assert effective(1e15, 1e9) == pytest.approx(1e9 * (1 + REPEAT_DECAY))
    assert effective(5e8, 1e9) == 5e8  # nothing is repeated


@given(st.floats(1e6, 1e13), st.floats(1e6, 1e13), st.floats(1.001, 10))
def test_repeats_are_worth_less_than_new_tokens_but_something(drawn: float, unique: float, factor: float) -> None:
    worth = effective(drawn, unique)
    assert worth <= drawn * (1 + 1e-9)
    assert effective(drawn * factor, unique) >= worth
    assert effective(drawn, unique * factor) >= worth * (1 - 1e-9)


@given(st.floats(1e17, 1e26), st.floats(1e7, 1e14))
def test_no_split_beats_the_best_one_with_repeats(flops: float, unique: float) -> None:
    best = best_with_repeats(REFIT, flops, unique)
    assert best.flops == pytest.approx(flops)
    loss = repeated_loss(REFIT, *best, unique)
    for factor in (0.7, 0.9, 1.1, 1.4):
        parameters = best.parameters * factor
        other = repeated_loss(REFIT, parameters, flops / (6 * parameters), unique)
        at_border = not 1 / 99 < parameters / REFIT.frontier.at(flops).parameters < 99
        assert other > loss - 1e-4 or at_border


def test_enough_data_changes_nothing() -> None:
    free = REFIT.frontier.at(1e22)
    assert best_with_repeats(REFIT, 1e22, free.tokens) == free
    assert repeated_loss(REFIT, 1e9, 2e10, 2e10) == REFIT.loss(1e9, 2e10)
    scarce = best_with_repeats(REFIT, 1e22, free.tokens / 20)
    assert scarce.parameters < free.parameters  # Muennighoff et al. 2023, section 5: epochs before parameters


@given(st.floats(1.85, 6), st.floats(1, 5000))
def test_a_split_with_a_loss_has_it(loss: float, ratio: float) -> None:
    found = with_loss(REFIT, loss, ratio)
    assert found.ratio == pytest.approx(ratio) and REFIT.loss(*found) == pytest.approx(loss, rel=1e-9)


def test_overtraining_costs_compute_now_and_pays_later() -> None:
    rows = overtraining(REFIT, 5.76e23)
    assert [row.ratio for row in rows] == list(RATIOS) == [20, 50, 100, 200, 500, 1000, 2000]
    best = REFIT.frontier.at(5.76e23)
    for before, after in zip(rows, rows[1:], strict=False):
        assert after.penalty > before.penalty >= 0
        assert after.same_loss.parameters < before.same_loss.parameters < best.parameters
        assert after.extra_compute > before.extra_compute
        assert after.pays_after_tokens > before.pays_after_tokens > 0
    for row in rows:
        assert row.same_compute.flops == pytest.approx(5.76e23)
        assert REFIT.loss(*row.same_loss) == pytest.approx(REFIT.loss(*best))
        # At the break-even both lives cost the same.
        inference = row.pays_after_tokens
        here = row.same_loss.flops + 2 * row.same_loss.parameters * inference
        assert here == pytest.approx(best.flops + 2 * best.parameters * inference, rel=1e-6)


def test_a_larger_model_never_pays() -> None:
    (row,) = overtraining(REFIT, 5.76e23, [5])
    assert row.same_loss.parameters > REFIT.frontier.at(5.76e23).parameters and math.isinf(row.pays_after_tokens)


def test_the_example_of_the_inference_paper() -> None:
    """Sardana et al. 2024, figure 1: a 7B model in place of 13B saves 1.7e22 FLOPs, 17 %, at 2T tokens of inference."""
    fit = LossFit("theirs", 1.69, 406.4, 410.7, 0.336, 0.283)
    big = fit.frontier.of_parameters(13e9)
    loss = fit.loss(*big)
    small = min((with_loss(fit, loss, r) for r in range(50, 400)), key=lambda s: abs(s.parameters - 7e9))
    before, after = (one.flops + 2 * one.parameters * 2e12 for one in (big, small))
    assert before - after == pytest.approx(1.7e22, rel=0.05) and 1 - after / before == pytest.approx(0.17, abs=0.01)
