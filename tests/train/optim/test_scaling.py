"""float16: the rule of the loss scale, a step with it, and all ranks alike through an overflow.

    python -m pytest -q tests/train/optim/test_scaling.py
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pretrainer.config import TrainConfig
from pretrainer.errors import ConfigError
from pretrainer.model import loss as loss_module
from pretrainer.model.loss import LossSettings, chunked_loss, whole_loss
from pretrainer.model.transformer import Transformer
from pretrainer.train.optim import scaling
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.optim.scaling import LossScale, first_scale
from pretrainer.train.scoring.evaluate import evaluate
from pretrainer.train.sharding.parallel import precision_for
from pretrainer.train.step import train_step
from tests.model.fill import fill
from tests.train.ranks import run_ranks
from tests.train.samples import CPU, MODEL, TRAIN, VOCAB, build, full_weights, pieces, run_steps

HALF = replace(TRAIN, precision="float16")
YES, NO = torch.tensor(True), torch.tensor(False)


# ---------------------------------------------------------------------------------------------------------- the rule


def test_the_scale_doubles_after_applied_steps_in_a_row_and_halves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "GROWTH_INTERVAL", 3)
    scale, seen = LossScale("cpu", 64.0), []
    for applied in (YES, YES, NO, YES, YES, YES, YES, NO, NO):
        scale.update(applied)
        seen.append(scale.read())
    assert seen == [(64, 1), (64, 2), (32, 0), (32, 1), (32, 2), (64, 0), (64, 1), (32, 0), (16, 0)]


def test_the_rule_is_that_of_torchs_scaler() -> None:
    assert scaling.GROWTH_INTERVAL == 2_000
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=scaling.GROWTH_INTERVAL)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer, ours = torch.optim.SGD([parameter], lr=0.0), LossScale("cpu", 2.0**10)
    for step in range(2_200):
        parameter.grad = torch.tensor([math.inf if step in (3, 4, 100) else 1.0])
        theirs.scale(torch.zeros(()))
        theirs.step(optimizer)
        theirs.update()
        ours.update(YES if parameter.grad.isfinite() else NO)
        assert ours.read() == (theirs.get_scale(), theirs._get_growth_tracker()), step
    assert ours.read()[0] == 2.0**8, "three times down, once up"


def test_the_scale_has_limits_and_no_number_is_lost_at_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "GROWTH_INTERVAL", 1)
    scale = LossScale("cpu", 2.0)
    for _ in range(5):
        scale.update(NO)
    assert scale.read() == (1.0, 0)
    for _ in range(60):
        scale.update(YES)
    assert scale.read() == (2.0**40, 0)


@pytest.mark.parametrize(("tokens", "scale"), [(8_192, 2.0**16), (524_288, 2.0**22), (524_289, 2.0**23)])
def test_the_first_scale_is_torchs_for_a_batch_of_8192_tokens(tokens: int, scale: float) -> None:
    assert first_scale(tokens) == scale


# ------------------------------------------------------------------------------------------------------------ a step


def plain(train: TrainConfig = TRAIN) -> tuple[Transformer, torch.optim.Optimizer]:
    model = fill(Transformer(MODEL, VOCAB))
    return model, build_optimizer(model, train)


def test_a_scale_changes_no_bit_in_float32() -> None:
    """It is a power of two, and so is the number of targets here."""
    found = []
    for scale in (None, LossScale("cpu", 2.0**9)):
        model, optimizer = plain()
        results = [train_step(model, optimizer, pieces(n, 0), 1, 16, 1e-2, 0.5, scale) for n in (1, 2)]
        found.append((results, [p.detach().clone() for p in model.parameters()]))
    assert found[0][0] == found[1][0] and found[0][0][0].grad_norm > 0.5
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_an_overflow_halves_the_scale_until_a_step_is_applied() -> None:
    model, optimizer = plain()
    model.blocks[1].ffn.up.weight.register_hook(lambda g: torch.where(g.abs().amax() > 8, math.inf, g))
    before, scale = [p.detach().clone() for p in model.parameters()], LossScale("cpu", 2.0**12)
    tried = [train_step(model, optimizer, pieces(1, 0), 0, 16, 1e-2, 1.0, scale) for _ in range(4)]
    assert [one.applied for one in tried] == [False] * 4 and scale.read() == (2.0**8, 0)
    assert all(math.isfinite(one.loss) and one.loss == tried[0].loss for one in tried)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    while not tried[-1].applied:
        tried.append(train_step(model, optimizer, pieces(1, 0), 0, 16, 1e-2, 1.0, scale))
    assert 4 < len(tried) <= 13 and scale.read()[1] == 1
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}


# ---------------------------------------------------------------------------------------------------- loss in chunks


def gradients(dtype: torch.dtype, chunk: int | None, seed: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Of hidden states and weight, divided by the seed; a vocabulary of which most tokens are very improbable."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(24, 16, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(64, 16, generator=generator) * 1.5).to(dtype).requires_grad_()
    targets = torch.randint(0, 64, (24,), generator=generator)
    if chunk is None:
        loss = whole_loss(torch.nn.functional.linear(hidden, weight), targets)
    else:
        loss = chunked_loss(hidden, weight, targets, True, LossSettings(chunk), seed)
    (loss.objective if seed is None else loss.objective * seed).backward()
    assert hidden.grad is not None and weight.grad is not None
    factor = 1.0 if seed is None else seed.double()
    return hidden.grad.double() / factor, weight.grad.double() / factor


@pytest.mark.parametrize(("chunk", "fused"), [(None, False), (5, False), (24, False), (5, True)])
@pytest.mark.parametrize("exponent", [-9, -3, 3])
def test_float16_gradients_are_those_of_the_scaled_loss(
    chunk: int | None, fused: bool, exponent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A seed of 2^-9 is a mean over 524,288 targets at a scale of 2^10: without more scale much would be zero."""
    monkeypatch.setattr(loss_module, "is_fused", lambda hidden: fused)
    seed = torch.tensor(2.0**exponent * 1.25)
    got, expected = gradients(torch.float16, chunk, seed), gradients(torch.float64, None, None)
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine - theirs).norm() < 0.003 * theirs.norm()


def test_small_probabilities_reach_the_weight_in_chunks_too() -> None:
    """Rows of tokens that are no target: their gradient is a probability of about 2^-22 times a hidden state."""
    hidden = torch.ones(4, 16, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(8, 16, dtype=torch.float16)
    weight[0], weight[1:] = 0.5, -0.45  # logits 8 and -7.2
    weight.requires_grad_()
    probability = 1 / (math.exp(15.2) + 7)
    seed = torch.tensor(2.0**12)
    loss = chunked_loss(hidden, weight, torch.zeros(4, dtype=torch.int64), True, LossSettings(2), seed)
    (loss.objective * seed).backward()
    assert weight.grad is not None
    assert weight.grad[3, 5].item() / 2**12 == pytest.approx(4 * probability, rel=0.01)


def test_the_seed_is_divided_out_again_where_the_objective_gets_another_gradient() -> None:
    for dtype in (torch.float32, torch.float16):
        plain_gradients = gradients(dtype, 5, None)
        hidden_and_weight = []
        for seed in (torch.tensor(4.0), torch.tensor(16.0)):
            generator = torch.Generator().manual_seed(0)
            hidden = torch.randn(24, 16, generator=generator).to(dtype).requires_grad_()
            weight = (torch.randn(64, 16, generator=generator) * 1.5).to(dtype).requires_grad_()
            targets = torch.randint(0, 64, (24,), generator=generator)
            chunked_loss(hidden, weight, targets, True, LossSettings(5), seed).objective.backward()
            hidden_and_weight.append((hidden.grad, weight.grad))
        for found in hidden_and_weight:
            for mine, theirs in zip(found, plain_gradients, strict=True):
                torch.testing.assert_close(mine.double(), theirs, rtol=0.01, atol=1e-3)


# ------------------------------------------------------------------------------------------------------ several ranks


def trained(train: TrainConfig, rank: int, world: int, overflow: bool = False) -> Any:
    """(loss, norm, applied) of every step, the weights, held-out loss, the scale at the end."""
    model, optimizer = build(train=train)
    scale = LossScale(CPU, first_scale(192)) if train.precision == "float16" else None
    if overflow and rank == 1:  # one rank's gradient alone is too large, until the scale is 2^8
        assert scale is not None
        model.norm.register_forward_hook(lambda _module, _args, out: _Overflow.apply(out, scale.scale))
    results = run_steps(model, optimizer, rank, world, 0, 6 if overflow else 3, loss_scale=scale)
    held_out = evaluate(model, [piece for number in range(100, 103) for piece in pieces(number, 0)], 1000, rank, world)
    lines = [(one.loss, one.grad_norm, one.applied) for one in results]
    return lines, full_weights(model), held_out.loss, None if scale is None else scale.read()


class _Overflow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.scale = scale.clone()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.where(ctx.scale > 2.0**8, math.inf, gradient), None


def on_ranks(rank: int, world: int) -> dict[str, Any]:
    found = {}
    for name, train in (("float32", TRAIN), ("float16", HALF)):
        found[name] = trained(train, rank, world)
        found[f"{name} in chunks"] = trained(replace(train, loss_chunk_tokens=5), rank, world)
    return found | ({"overflow": trained(HALF, rank, world, overflow=True)} if world > 1 else {})


@pytest.fixture(scope="module")
def runs() -> dict[int, list[dict[str, Any]]]:
    return {world: run_ranks(world, on_ranks) for world in (1, 2)}


@pytest.mark.parametrize("how", ["", " in chunks"])
def test_float16_trains_close_to_float32(runs: dict[int, list[dict[str, Any]]], how: str) -> None:
    whole, half = (runs[2][0][f"{name}{how}"] for name in ("float32", "float16"))
    for (loss, norm, _), (half_loss, half_norm, applied) in zip(whole[0], half[0], strict=True):
        assert applied and half_loss == pytest.approx(loss, rel=0.003) and half_loss != loss
        assert half_norm == pytest.approx(norm, rel=0.02)
    assert half[2] == pytest.approx(whole[2], rel=0.01)
    assert half[3] == (first_scale(192), 3)


def test_an_overflow_of_one_rank_is_skipped_by_all_with_one_scale(runs: dict[int, list[dict[str, Any]]]) -> None:
    one, other = (rank["overflow"] for rank in runs[2])
    assert repr(one[0]) == repr(other[0]) and one[3] == other[3] == (2.0**8, 3)
    assert [applied for _loss, _norm, applied in one[0]] == [False] * 3 + [True] * 3
    assert all(math.isfinite(loss) for loss, _norm, _applied in one[0])
    assert all(np.isfinite(one[1][name]).all() and np.array_equal(one[1][name], other[1][name]) for name in one[1])


@pytest.mark.parametrize("how", ["", " in chunks"])
def test_a_step_in_float16_does_not_depend_on_the_world_size(runs: dict[int, list[dict[str, Any]]], how: str) -> None:
    for one, two in zip(runs[1][0][f"float16{how}"][0], runs[2][0][f"float16{how}"][0], strict=True):
        assert one[:2] == pytest.approx(two[:2], rel=0.003)


# ------------------------------------------------------------------------------------------------------------ config


def test_auto_is_never_float16_and_exact_mode_refuses_it() -> None:
    assert precision_for(TRAIN, CPU) == torch.float32 and precision_for(HALF, CPU) == torch.float16
    with pytest.raises(ConfigError, match=r"train\.precision='float16'.*bfloat16 or float32.*train\.exact=false"):
        replace(HALF, exact=True)


@pytest.mark.parametrize(("has", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_that_only_emulates_bfloat16_has_float32_by_default(
    monkeypatch: pytest.MonkeyPatch, has: bool, expected: torch.dtype
) -> None:
    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return has or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert precision_for(TRAIN, torch.device("cuda")) == expected
