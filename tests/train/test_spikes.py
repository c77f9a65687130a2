"""What is called a spike, and that it is decided before the update.

    python -m pytest -q tests/train/test_spikes.py
"""

from __future__ import annotations

import json
import math
from statistics import median_low

import numpy as np
import pytest
import torch

from pretrainer.config import StabilityConfig
from pretrainer.model.transformer import Transformer
from pretrainer.train.exact import BlockSum, exact_train_step
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.optim.scaling import LossScale
from pretrainer.train.spikes import NORMAL, REASONS, Detector
from pretrainer.train.step import train_step
from tests.model.fill import fill
from tests.train.samples import MODEL, TRAIN, VOCAB, pieces
from tests.train.test_no_host_read import bits

SMALL = StabilityConfig(window_steps=8, min_steps=4)
USUAL = [(3.0 + 0.1 * (n % 5), 1.0 + 0.2 * (n % 3)) for n in range(40)]


def judge(detector: Detector, loss: float, norm: float) -> tuple[bool, str, float, float]:
    found = detector.judge(torch.tensor(loss, dtype=torch.float64), torch.tensor(norm, dtype=torch.float64))
    return bool(found.applied), REASONS[int(found.reason)], *found.bounds.tolist()


def fed(config: StabilityConfig = SMALL, steps: int = 8) -> Detector:
    detector = Detector(config, "cpu")
    assert all(judge(detector, *values)[:2] == (True, "") for values in USUAL[:steps])
    return detector


def bound(values: list[float], sigmas: float, least: float) -> float:
    """The rule, written down again without torch."""
    middle = median_low(values)
    spread = NORMAL * median_low([abs(value - middle) for value in values])
    return middle + sigmas * max(spread, least)


@pytest.mark.parametrize("steps", [4, 5, 7, 8, 9, 30])
def test_bounds_are_those_of_the_rule(steps: int) -> None:
    _applied, _reason, loss, norm = judge(fed(steps=steps), 3.0, 1.0)
    losses, norms = zip(*USUAL[max(0, steps - 8) : steps], strict=True)
    assert loss == pytest.approx(bound(list(losses), 6, 0.01 * median_low(losses)), rel=1e-12)
    assert norm == pytest.approx(math.exp(bound([math.log(n) for n in norms], 6, 0.1)), rel=1e-12)


def test_norms_that_vary_by_factors_are_no_spikes_and_a_jump_is() -> None:
    """As the quickstart's: half of them between 0.45 and 0.75, one in fifty twice the usual."""
    rng = np.random.default_rng(0)
    detector = Detector(StabilityConfig(), "cpu")
    norms = 0.55 * np.exp(0.3 * rng.standard_normal(700))
    assert max(norms) > 1.2 and all(judge(detector, 3.0, norm)[1] == "" for norm in norms)
    assert judge(detector, 3.0, 6.0)[1] == "grad_norm_spike"


def test_a_gradient_of_zero_is_a_number_like_another() -> None:
    detector = Detector(SMALL, "cpu")
    assert [judge(detector, 3.0, 0.0)[1] for _ in range(6)] == [""] * 6
    assert judge(detector, 3.0, 1.0)[1] == "grad_norm_spike"


def test_nothing_is_a_spike_before_enough_is_known() -> None:
    assert judge(fed(steps=3), 1e6, 1e6) == (True, "", math.inf, math.inf)
    assert judge(fed(steps=4), 1e6, 1e6)[:2] == (True, "loss_spike")


def test_the_bound_itself_is_no_spike_and_the_next_number_is() -> None:
    _applied, _reason, loss, norm = judge(fed(), 3.0, 1.0)
    assert judge(fed(), loss, norm)[1] == ""
    assert judge(fed(), np.nextafter(loss, math.inf), norm)[1] == "loss_spike"
    assert judge(fed(), loss, np.nextafter(norm, math.inf))[1] == "grad_norm_spike"
    assert judge(fed(), -1e6, 0.0)[1] == "", "less is no spike"


def test_no_sigmas_look_for_nothing() -> None:
    blind = StabilityConfig(window_steps=8, min_steps=4, loss_sigmas=0, grad_norm_sigmas=0)
    assert judge(fed(blind), 1e9, 1e9)[:2] == (True, "")
    assert judge(fed(StabilityConfig(window_steps=8, min_steps=4, loss_sigmas=0)), 1e9, 1e9)[1] == "grad_norm_spike"


@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (3.0, math.nan), (math.inf, 1.0), (3.0, math.inf)])
def test_what_is_not_finite_is_never_applied_and_never_remembered(loss: float, norm: float) -> None:
    for config in (SMALL, StabilityConfig(loss_sigmas=0, grad_norm_sigmas=0)):
        detector = Detector(config, "cpu")
        assert judge(detector, loss, norm)[:2] == (False, "not_finite")
        assert detector.state() == {"losses": [], "grad_norms": []}


def test_only_a_veto_keeps_a_spike_from_being_applied_and_remembered() -> None:
    told = fed()
    assert judge(told, 50.0, 1.0)[:2] == (True, "loss_spike") and 50.0 in told.state()["losses"]
    vetoing = fed(StabilityConfig(window_steps=8, min_steps=4, on_spike="skip"))
    before = vetoing.state()
    assert judge(vetoing, 50.0, 1.0)[:2] == (False, "loss_spike") and vetoing.state() == before
    vetoing.vetoes = False  # a step that was decided before
    assert judge(vetoing, 50.0, 1.0)[:2] == (True, "loss_spike")


def test_one_wild_value_hardly_moves_the_bounds() -> None:
    calm, shaken = fed(), fed(steps=7)
    judge(shaken, 1e9, 1e9)
    assert judge(shaken, 3.0, 1.0)[2] < judge(calm, 3.0, 1.0)[2] + 1.0


@pytest.mark.parametrize("steps", [0, 3, 8, 21])
def test_the_window_goes_through_a_checkpoint(steps: int) -> None:
    before, after = fed(steps=steps), Detector(SMALL, "cpu")
    after.load(json.loads(json.dumps(before.state())))
    assert after.state() == before.state() and len(after.state()["losses"]) == min(steps, 8)
    for values in USUAL[steps:]:
        assert judge(before, *values) == judge(after, *values)
    after.load(None)
    assert after.state() == {"losses": [], "grad_norms": []}


def test_a_smaller_window_keeps_the_newest() -> None:
    smaller = Detector(StabilityConfig(window_steps=4, min_steps=4), "cpu")
    smaller.load(fed(steps=11).state())
    assert smaller.state()["losses"] == [loss for loss, _norm in USUAL[7:11]]


@pytest.mark.parametrize("exact", [False, True])
def test_a_vetoed_step_changes_no_bit(exact: bool) -> None:
    model = fill(Transformer(MODEL, VOCAB))
    optimizer = build_optimizer(model, TRAIN)
    detector = Detector(StabilityConfig(window_steps=4, min_steps=4, on_spike="skip"), "cpu")
    total = BlockSum(model, 1, 64)

    def step(n: int):  # noqa: ANN202
        if exact:
            return exact_train_step(model, optimizer, [pieces(n, 0)], 10, 1e-3, 1.0, total, detector)
        return train_step(model, optimizer, pieces(n, 0), 0, 10, 1e-3, 1.0, None, detector)

    assert all(step(1).applied for _ in range(5))
    before = bits(model, optimizer)
    hook = model.norm.register_forward_hook(lambda module, args, out: out * 50)
    spiked = step(1)
    hook.remove()
    assert not spiked.applied and spiked.reason == "loss_spike" and spiked.loss > spiked.loss_bound
    assert bits(model, optimizer) == before
    assert step(1).applied and bits(model, optimizer) != before


def test_an_overflow_of_float16_is_the_scales_doing_until_the_scale_is_least() -> None:
    model = fill(Transformer(MODEL, VOCAB))
    optimizer, scale = build_optimizer(model, TRAIN), LossScale("cpu", 2.0)
    hook = model.norm.register_forward_hook(lambda module, args, out: out * math.nan)
    found = [train_step(model, optimizer, pieces(1, 0), 0, 10, 1e-3, 1.0, scale).reason for _ in range(2)]
    hook.remove()
    assert found == ["overflow", "not_finite"] and scale.read() == (1.0, 0)


def test_a_vetoed_step_is_no_overflow() -> None:
    model = fill(Transformer(MODEL, VOCAB))
    optimizer, scale = build_optimizer(model, TRAIN), LossScale("cpu", 64.0)
    detector = Detector(StabilityConfig(window_steps=4, min_steps=4, on_spike="skip"), "cpu")
    for _ in range(4):
        train_step(model, optimizer, pieces(1, 0), 0, 10, 1e-3, 1.0, scale, detector)
    hook = model.norm.register_forward_hook(lambda module, args, out: out * 50)
    spiked = train_step(model, optimizer, pieces(1, 0), 0, 10, 1e-3, 1.0, scale, detector)
    hook.remove()
    assert not spiked.applied and spiked.reason == "loss_spike" and scale.read() == (64.0, 5)
