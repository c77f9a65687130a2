"""AdamW and Muon against float64 arithmetic, at world size 1 and 2, and through a checkpoint.

    python -m pytest -q tests/train/optim/test_optimizer.py
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from pretrainer.config import TrainConfig
from pretrainer.errors import ConfigError
from pretrainer.model.flops import optimizer_state_bytes
from pretrainer.model.transformer import Transformer
from pretrainer.train.checkpoints.checkpoint import load_sharded, save_sharded
from pretrainer.train.optim.muon import COEFFICIENTS, newton_schulz
from pretrainer.train.optim.optimizer import OPTIMIZERS, RuleOptimizer, build_optimizer, decays, is_hidden_matrix
from tests.model.fill import fill
from tests.train.ranks import run_ranks
from tests.train.samples import MODEL, TRAIN, VOCAB, build, full_weights, run_steps, whole

MUON = replace(TRAIN, optimizer="muon", optimizer_state="float32")
HALF = replace(TRAIN, optimizer_state="bfloat16")
RATE = 1e-2


def gradients(model: nn.Module, step: int) -> None:
    for number, parameter in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(1000 * step + number)
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** (number % 4 - 2)


def trained(train: TrainConfig, steps: int = 3) -> tuple[Transformer, torch.optim.Optimizer]:
    model = fill(Transformer(MODEL, VOCAB))
    optimizer = build_optimizer(model, train)
    for step in range(steps):
        gradients(model, step)
        for group in optimizer.param_groups:
            group["lr"] = RATE
        optimizer.step()
    return model, optimizer


def orthogonal64(matrix: torch.Tensor) -> torch.Tensor:
    """The five iterations on the singular values alone, float64."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = COEFFICIENTS[0] * s + COEFFICIENTS[1] * s**3 + COEFFICIENTS[2] * s**5
    return u @ torch.diag(s) @ v


def reference(train: TrainConfig, steps: int = 3) -> dict[str, torch.Tensor]:
    """The weights after these steps in float64, from the papers' formulas."""
    model = fill(Transformer(MODEL, VOCAB))
    values = {n: p.detach().double() for n, p in model.named_parameters()}
    sums = {n: torch.zeros_like(v) for n, v in values.items()}
    squares = {n: torch.zeros_like(v) for n, v in values.items()}
    for step in range(1, steps + 1):
        gradients(model, step - 1)
        for name, parameter in model.named_parameters():
            gradient = parameter.grad.double()
            decay = 0.0 if parameter.ndim < 2 or name == "embed.weight" else train.weight_decay
            values[name] *= 1 - RATE * decay
            if train.optimizer == "muon" and parameter.ndim == 2 and name not in ("embed.weight", "head.weight"):
                sums[name] = train.muon_momentum * sums[name] + gradient  # Jordan's form: a sum, and Nesterov's look
                update = orthogonal64(gradient + train.muon_momentum * sums[name])
                values[name] -= RATE * 0.2 * math.sqrt(max(parameter.shape)) * update
            else:
                sums[name] = train.beta1 * sums[name] + (1 - train.beta1) * gradient
                squares[name] = train.beta2 * squares[name] + (1 - train.beta2) * gradient**2
                first, second = sums[name] / (1 - train.beta1**step), squares[name] / (1 - train.beta2**step)
                values[name] -= RATE * first / (second.sqrt() + train.eps)
    return values


# ------------------------------------------------------------------------------------------------------ one process


@pytest.mark.parametrize(
    ("train", "tolerance"), [(TRAIN, 1e-5), (MUON, 1e-5), (HALF, 5e-4)], ids=["adamw", "muon", "bfloat16 state"]
)
def test_three_steps_agree_with_float64_arithmetic(train: TrainConfig, tolerance: float) -> None:
    model, _ = trained(train)
    expected = reference(train)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), expected[name], rtol=0, atol=tolerance, msg=name)


def test_float32_state_through_the_same_rule_is_torch_adamw() -> None:
    """What differs in bfloat16 is then the rounding of the moments alone."""
    theirs, _ = trained(TRAIN)
    ours = fill(Transformer(MODEL, VOCAB))
    half = build_optimizer(ours, HALF)
    assert isinstance(half, RuleOptimizer)
    groups = [{k: v for k, v in group.items() if k in ("params", "weight_decay")} for group in half.param_groups]
    whole = RuleOptimizer(
        groups, torch.float32, rule="adamw", lr=RATE, betas=(TRAIN.beta1, TRAIN.beta2), eps=TRAIN.eps
    )
    for step in range(3):
        gradients(ours, step)
        whole.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)


def test_bfloat16_moments_are_the_float32_ones_rounded_to_nearest() -> None:
    """After one step; and the update used them before they were rounded."""
    (half_model, half), (whole_model, whole) = trained(HALF, 1), trained(TRAIN, 1)
    for a, b in zip(half_model.parameters(), whole_model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)
        for moment in ("exp_avg", "exp_avg_sq"):
            kept = half.state[a][moment]
            assert kept.dtype == torch.bfloat16
            torch.testing.assert_close(kept.float(), whole.state[b][moment], rtol=2**-8, atol=1e-30)


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (16, 16), (3, 8, 20), (3, 20, 8)])
def test_newton_schulz_moves_singular_values_and_nothing_else(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = newton_schulz(matrix)
    for one, its in zip(matrix.reshape(-1, *shape[-2:]), got.reshape(-1, *shape[-2:]), strict=True):
        torch.testing.assert_close(its, orthogonal64(one), rtol=0, atol=1e-5)
        values = torch.linalg.svdvals(its)
        assert values.min() > 0.3 and values.max() < 1.3


def test_newton_schulz_is_torch_muons_and_a_zero_matrix_stays_zero() -> None:
    parameter = nn.Parameter(torch.randn(12, 30, generator=torch.Generator().manual_seed(2)))
    before = parameter.detach().clone()
    parameter.grad = torch.randn(12, 30, generator=torch.Generator().manual_seed(3))
    theirs = torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0, momentum=0.0, adjust_lr_fn="match_rms_adamw")
    theirs.step()
    ours = before - 0.2 * 30**0.5 * newton_schulz(parameter.grad)
    torch.testing.assert_close(ours, parameter.detach(), rtol=0, atol=0.05)  # torch iterates in bfloat16
    assert not newton_schulz(torch.zeros(4, 5)).any()


def test_muon_is_for_matrices_in_blocks_and_experts_are_a_batch() -> None:
    model = fill(Transformer(MODEL, VOCAB))
    chosen = {name.rsplit(".", 2)[1] for name, p in model.named_parameters() if is_hidden_matrix(name, p)}
    assert chosen == {"q", "k", "v", "o", "gate", "up", "down"}
    position_table = nn.Parameter(torch.zeros(4, 4))
    assert not decays("embed_positions.weight", position_table)
    assert not is_hidden_matrix("embed_positions.weight", position_table)
    names = {id(p): name for name, p in model.named_parameters()}
    rules = {group["rule"]: group for group in build_optimizer(model, MUON).param_groups}
    inside = {name for name in names.values() if "blocks" in name and "norm" not in name}
    assert {names[id(p)] for p in rules["muon"]["params"]} == inside

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ParameterList([torch.zeros(3, 8, 20)])

    experts = Experts()
    optimizer = build_optimizer(experts, replace(MUON, weight_decay=0.0))
    experts.blocks[0].grad = torch.randn(3, 8, 20, generator=torch.Generator().manual_seed(4))
    optimizer.step()
    for one, gradient in zip(experts.blocks[0].detach(), experts.blocks[0].grad, strict=True):
        expected = -MUON.learning_rate * 0.2 * 20**0.5 * orthogonal64(gradient.double())
        torch.testing.assert_close(one.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("train", [TRAIN, HALF, MUON], ids=["adamw", "bfloat16 state", "muon"])
def test_state_is_complete_before_the_first_step(train: TrainConfig) -> None:
    model = fill(Transformer(MODEL, VOCAB))
    optimizer = build_optimizer(model, train)
    before = {n: {k: (v.shape, v.dtype) for k, v in optimizer.state[p].items()} for n, p in model.named_parameters()}
    model, optimizer = trained(train, 1)
    after = {n: {k: (v.shape, v.dtype) for k, v in optimizer.state[p].items()} for n, p in model.named_parameters()}
    assert before == after and {int(s["step"]) for s in optimizer.state.values()} == {1}


@pytest.mark.parametrize("train", [HALF, MUON], ids=["bfloat16 state", "muon"])
def test_the_state_goes_through_torchs_own_state_dict(train: TrainConfig) -> None:
    model, optimizer = trained(train, 2)
    state = get_optimizer_state_dict(model, optimizer)
    assert state["state"].keys() == dict(model.named_parameters()).keys()
    other = build_optimizer(model, train)
    set_optimizer_state_dict(model, other, state)
    for parameter in model.parameters():
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(other.state[parameter][key], value) and other.state[parameter][key].dtype == value.dtype


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
def test_bytes_of_the_state_in_the_plan_are_those_held(optimizer: Any, moments: Any) -> None:
    model = Transformer(MODEL, VOCAB)
    state = build_optimizer(model, replace(TRAIN, optimizer=optimizer, optimizer_state=moments)).state
    held = sum(value.nbytes for one in state.values() for name, value in one.items() if name != "step")
    vectors = sum(p.numel() for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim < 2)
    second = vectors * (4 if moments == "float32" else 2) if optimizer == "muon" else 0
    assert optimizer_state_bytes(MODEL, VOCAB, optimizer, moments) == held - second


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.optimizer='lion' is not known: use one of adamw, muon"):
        build_optimizer(nn.Linear(1, 1), replace(TRAIN, optimizer="lion"))
    with pytest.raises(ConfigError, match=r"train\.optimizer_state='bfloat16'.*0\.98"):
        replace(HALF, beta2=0.99)
    with pytest.raises(ConfigError, match=r"train\.muon_momentum=1\.0"):
        replace(MUON, muon_momentum=1.0)
    assert set(OPTIMIZERS) == {"adamw", "muon"}


# ------------------------------------------------------------------------------------------------- several processes


def train_and_save(rank: int, world: int, folder: str) -> Any:
    found = {}
    for name, train in (("muon", MUON), ("bfloat16", HALF), ("muon bfloat16", replace(HALF, optimizer="muon"))):
        model, optimizer = build(train=train)
        save_sharded(model, optimizer, {"step": 0}, f"{folder}/{name}/start{world}.{rank}")
        losses = [result.loss for result in run_steps(model, optimizer, rank, world, 0, 3)]
        save_sharded(model, optimizer, {"step": 3}, f"{folder}/{name}/{world}.{rank}")
        moments = {n: optimizer.state[p] for n, p in model.named_parameters()}
        kept = {
            n: {k: whole(v).float().clone().numpy() for k, v in s.items() if k != "step"}
            for n, s in moments.items()
        }
        after = [result.loss for result in run_steps(model, optimizer, rank, world, 3, 4)]
        found[name] = losses, full_weights(model), kept, after
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, Any], Path]:
    folder = tmp_path_factory.mktemp("optimizers")
    return {world: run_ranks(world, train_and_save, str(folder))[0] for world in (1, 2)}, folder


@pytest.mark.parametrize("name", ["muon", "bfloat16", "muon bfloat16"])
def test_losses_and_weights_do_not_depend_on_the_world_size(runs: Any, name: str) -> None:
    one, two = runs[0][1][name], runs[0][2][name]
    assert two[0] == pytest.approx(one[0], abs=1e-5 if name == "muon" else 1e-4)
    assert one[0][2] < one[0][0]
    for parameter in one[1]:
        np.testing.assert_allclose(
            one[1][parameter], two[1][parameter], rtol=0, atol=1e-4 if name == "muon" else 2e-3, err_msg=parameter
        )


@pytest.mark.parametrize("name", ["muon", "bfloat16", "muon bfloat16"])
def test_a_checkpoint_of_one_rank_continues_without_a_process_group(runs: Any, name: str) -> None:
    train = {"muon": MUON, "bfloat16": HALF, "muon bfloat16": replace(HALF, optimizer="muon")}[name]
    (_losses, _weights, moments, after), folder = runs[0][1][name], runs[1] / name
    model = Transformer(MODEL, VOCAB)
    optimizer = build_optimizer(model, train)
    assert load_sharded(model, optimizer, folder / "start1.0") == {"step": 0}
    assert not any(v.any() for s in optimizer.state.values() for k, v in s.items())
    assert load_sharded(model, optimizer, folder / "1.0") == {"step": 3}
    for parameter, value in model.named_parameters():
        for moment, expected in moments[parameter].items():
            assert np.array_equal(optimizer.state[value][moment].float().numpy(), expected), (parameter, moment)
    assert run_steps(model, optimizer, 0, 1, 3, 4)[0].loss == pytest.approx(after[0], abs=1e-5)


def test_a_checkpoint_of_another_optimizer_is_refused(runs: Any) -> None:
    model = Transformer(MODEL, VOCAB)
    with pytest.raises(ConfigError, match=r"has no exp_avg\.blocks\.0.*another train\.optimizer"):
        load_sharded(model, build_optimizer(model, TRAIN), runs[1] / "muon" / "1.0")
