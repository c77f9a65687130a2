"""Our step of AdamW against torch's, to the bit.

    python -m pytest -q tests/train/optim/test_fused.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from pretrainer.train.optim import optimizer as optimizers
from pretrainer.train.optim.fused import FusedAdamW
from pretrainer.train.optim.optimizer import adamw_for, build_optimizer, init_state
from pretrainer.train.step import apply_gradient
from tests.train.samples import TRAIN

SHAPES = ((7, 5), (1000, 33), (11,), ())


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def groups(of: list[nn.Parameter]) -> list[dict[str, object]]:
    return [{"params": of[:2], "weight_decay": 0.1}, {"params": of[2:], "weight_decay": 0.0}]


def trained(kind: type[AdamW], told: dict[str, float], absent: int | None = None) -> list[Tensor]:
    """Weights, moments and counters after four steps, of which the second is told."""
    weights = parameters()
    optimizer = kind(groups(weights), lr=0.1, betas=(0.9, 0.95), fused=True)
    init_state(optimizer)
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        for number, weight in enumerate(weights):
            weight.grad = torch.randn(weight.shape, generator=generator)
            if step == 3 and number == absent:
                weight.grad = None
        for name in told:
            setattr(optimizer, name, torch.tensor(told[name] if step == 1 else float(name == "grad_scale")))
        optimizer.step()
    states = [value for weight in weights for _name, value in sorted(optimizer.state[weight].items())]
    return [weight.detach() for weight in weights] + states


@pytest.mark.parametrize("told", [{}, {"found_inf": 0.0}, {"found_inf": 1.0}, {"grad_scale": 3.7, "found_inf": 0.0}])
@pytest.mark.parametrize("absent", [None, 1])
def test_its_steps_are_torchs(told: dict[str, float], absent: int | None) -> None:
    ours, theirs = trained(FusedAdamW, told, absent), trained(AdamW, told, absent)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_what_it_is_told_matters() -> None:
    plain, steps = trained(FusedAdamW, {}), len(SHAPES)
    for told in ({"found_inf": 1.0}, {"grad_scale": 3.7, "found_inf": 0.0}):
        changed = trained(FusedAdamW, told)
        assert not torch.equal(plain[0], changed[0])
        assert float(changed[steps + 2]) == (3.0 if told["found_inf"] else 4.0)


def test_only_the_cpu_has_it() -> None:
    assert adamw_for({"cpu"}) == (FusedAdamW, True)
    assert adamw_for({"cuda"}) == adamw_for({"cpu", "cuda"}) == (AdamW, True)
    assert adamw_for({"mps"}) == (AdamW, False)


@pytest.mark.parametrize("kind", [FusedAdamW, AdamW])
@pytest.mark.parametrize("clip_norm", [0.05, 1e6])
def test_a_step_clips_as_torch_does(kind: type[AdamW], clip_norm: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of plain AdamW with the gradient clipped beforehand; within rounding, since it divides."""
    model, other = nn.Linear(9, 9), nn.Linear(9, 9)
    other.load_state_dict(model.state_dict())
    for layer in (model, other):
        layer(torch.linspace(-1, 1, 18).view(2, 9)).square().sum().backward()
    config = replace(TRAIN, weight_decay=0.0, eps=1.0)  # with a usual eps the first update hides the scale
    monkeypatch.setattr(optimizers, "adamw_for", lambda devices: (kind, True))
    optimizer = build_optimizer(model, config)
    assert type(optimizer) is kind
    result = apply_gradient(model, optimizer, torch.ones((), dtype=torch.float64), 0.1, clip_norm)
    norm = nn.utils.clip_grad_norm_(other.parameters(), clip_norm)
    plain = AdamW(other.parameters(), lr=0.1, betas=(config.beta1, config.beta2), eps=1.0, weight_decay=0.0)
    before = [p.detach().clone() for p in other.parameters()]
    plain.step()
    assert result.grad_norm == pytest.approx(norm.item(), rel=1e-6)
    for a, b, old in zip(model.parameters(), other.parameters(), before, strict=True):
        torch.testing.assert_close(a - old, b - old, rtol=1e-4, atol=1e-8)
    assert not hasattr(optimizer, "grad_scale") and all(p.grad is None for p in model.parameters())
