"""float8 layers against float64 arithmetic on numbers that are rounded by the formats' definition.

    python -m pytest -q tests/model/test_float8.py
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pretrainer.config import ModelConfig, MoeConfig, TrainConfig
from pretrainer.errors import ConfigError
from pretrainer.model.float8 import Float8Linear, check_float8, use_float8
from pretrainer.model.transformer import Transformer
from pretrainer.train.optim.optimizer import build_optimizer
from pretrainer.train.sharding.parallel import build_model
from pretrainer.train.step import train_step
from tests.model.fill import fill
from tests.train.ranks import run_ranks
from tests.train.samples import CPU, MODEL, TRAIN, VOCAB, build, full_weights, pieces, run_steps

FLOAT8 = replace(TRAIN, float8=True)
E4M3, E5M2 = (3, -6, 448.0), (2, -14, 57344.0)  # bits of the mantissa, least exponent, largest number


def rounded(x: Tensor, kind: tuple[int, int, float]) -> Tensor:
    """x in float64 as the format holds it, scaled so that the largest element is the largest number of the format."""
    bits, least, largest = kind
    scale = largest / x.abs().max()
    scaled = x * scale
    exponent = torch.floor(torch.log2(scaled.abs().clamp(min=2.0**least)))
    step = 2.0 ** (exponent - bits)
    return torch.round(scaled / step) * step / scale  # torch.round: to even, as the format


def layer(inputs: int = 48, outputs: int = 64, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Linear(inputs, outputs, bias=bias).to(dtype)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3.0 ** (seed % 5)


@pytest.mark.parametrize("shape", [(16,), (3, 7), (1,), (2, 32)], ids=str)
def test_products_are_those_of_the_rounded_numbers(shape: tuple[int, ...]) -> None:
    """And all that was rounded was rounded to float8: the sums are float32."""
    plain = layer()
    x, gradient = draw(*shape, 48, seed=1).requires_grad_(), draw(*shape, 64, seed=2)
    out = Float8Linear(plain)(x)
    out.backward(gradient)

    rows, back = x.detach().double().flatten(0, -2), gradient.double().flatten(0, -2)
    x8, w8, g8 = rounded(rows, E4M3), rounded(plain.weight.detach().double(), E4M3), rounded(back, E5M2)
    expected = {
        "output": (out, x8 @ w8.T + plain.bias.detach().double()),
        "by input": (x.grad, g8 @ w8),
        "by weight": (plain.weight.grad, g8.T @ x8),
        "by bias": (plain.bias.grad, back.sum(0)),
    }
    for name, (got, wanted) in expected.items():
        assert got is not None and got.dtype == torch.float32
        close = dict(rtol=1e-5, atol=1e-5 * wanted.abs().max().item())
        torch.testing.assert_close(got.double().reshape(wanted.shape), wanted, msg=name, **close)


def test_rounding_moves_a_product_by_some_percent_and_no_more() -> None:
    plain = layer()
    x = draw(64, 48, seed=1).requires_grad_()
    theirs = plain(x)
    (by_x, by_weight) = torch.autograd.grad(theirs.square().sum(), (x, plain.weight))
    mine = Float8Linear(plain)(x)
    (my_x, my_weight) = torch.autograd.grad(mine.square().sum(), (x, plain.weight))
    for got, wanted in ((mine, theirs), (my_x, by_x), (my_weight, by_weight)):
        assert 0.005 < (got - wanted).norm() / wanted.norm() < 0.1


def test_bfloat16_in_is_bfloat16_out() -> None:
    plain, x = layer(dtype=torch.bfloat16), draw(8, 48, seed=1).bfloat16().requires_grad_()
    out = Float8Linear(plain)(x)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == plain.weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), Float8Linear(layer())(x.float()), rtol=0.05, atol=0.5)


def test_zeros_stay_zeros() -> None:
    assert not Float8Linear(layer(bias=False))(torch.zeros(16, 48)).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_hidden_by_a_scale(bad: float) -> None:
    x = draw(16, 48, seed=1)
    x[3, 4] = bad
    assert Float8Linear(layer())(x).isnan().all()
    model = fill(Transformer(MODEL, VOCAB))
    use_float8(model)
    optimizer = build_optimizer(model, TRAIN)
    hook = model.blocks[0].ffn.down.register_full_backward_pre_hook(lambda _m, g: (g[0] * bad,))
    assert not train_step(model, optimizer, pieces(1, 0), 0, 10, 1e-2, 1.0).applied
    hook.remove()
    assert train_step(model, optimizer, pieces(1, 0), 0, 10, 1e-2, 1.0).applied


@pytest.mark.parametrize("rows", [16, 21, 1])
def test_the_gpus_kernel_would_take_the_layouts(rows: int) -> None:
    """On meta tensors torch checks what cuBLAS wants: one side row-major, the other column-major, multiples of 16."""
    bad = torch.empty(rows, 24, dtype=torch.float8_e4m3fn, device="meta"), torch.ones((), device="meta")
    with pytest.raises(RuntimeError, match="divisible by 16"):
        torch._scaled_mm(bad[0], torch.empty(16, 24, dtype=torch.float8_e4m3fn, device="meta").t(), bad[1], bad[1])
    x = torch.empty(rows, 48, device="meta", requires_grad=True)
    out = Float8Linear(layer().to("meta"))(x)
    out.backward(torch.empty_like(out))
    assert out.shape == (rows, 64) and x.grad is not None and x.grad.shape == x.shape


def test_compiled_whole_it_is_the_same() -> None:
    found = []
    for compiled in (False, True):
        module: Any = Float8Linear(layer())
        run = torch.compile(module, backend="aot_eager", fullgraph=True) if compiled else module
        x = draw(3, 7, 48, seed=1).requires_grad_()
        out = run(x)
        out.backward(draw(3, 7, 64, seed=2))
        found.append((out.detach(), x.grad, module.weight.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- a model


def float8_names(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, Float8Linear)}


def test_layers_inside_the_blocks_and_no_others() -> None:
    model = fill(Transformer(MODEL, VOCAB))
    before = {name: p for name, p in model.named_parameters()}
    assert use_float8(model) == 2 * 7
    inside = {"attention.q", "attention.k", "attention.v", "attention.o", "ffn.gate", "ffn.up", "ffn.down"}
    assert float8_names(model) == {f"blocks.{block}.{name}" for block in (0, 1) for name in inside}
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)


def test_a_side_that_is_no_multiple_of_16_stays() -> None:
    model = fill(Transformer(replace(MODEL, ffn_hidden=40), VOCAB))
    use_float8(model)
    assert {name.split(".", 2)[2] for name in float8_names(model)} == {f"attention.{name}" for name in "qkvo"}


def test_routers_and_routed_experts_stay() -> None:
    moe = MoeConfig(experts=4, top_k=2, shared_experts=1)
    model = fill(Transformer(ModelConfig(layers=1, hidden=32, heads=4, ffn_hidden=48, moe=moe), VOCAB))
    use_float8(model)
    names = {name.removeprefix("blocks.0.") for name in float8_names(model)}
    assert names == {*(f"attention.{n}" for n in "qkvo"), *(f"ffn.shared.{n}" for n in ("gate", "up", "down"))}


@pytest.mark.parametrize(("capability", "name"), [((8, 0), "A100"), ((7, 0), "V100"), ((8, 6), "A10")])
def test_a_gpu_without_float8_is_refused_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    monkeypatch.setattr("pretrainer.train.sharding.parallel.build_sharded", lambda *_args: pytest.fail("it was built"))
    wanted = rf"capability 8\.9.*{name} has {capability[0]}\.{capability[1]}: set train\.float8=false"
    with pytest.raises(ConfigError, match=wanted):
        build_model(MODEL, VOCAB, FLOAT8, torch.device("cuda"))


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)])
def test_a_gpu_with_float8_is_taken(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    check_float8(torch.device("cuda"))
    check_float8(CPU)


def test_what_cannot_be_together_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.float8=True.*exact"):
        replace(FLOAT8, exact=True)
    for precision in ("float32", "float16"):
        with pytest.raises(ConfigError, match=rf"train\.float8=True.*auto or bfloat16, it is {precision}"):
            replace(FLOAT8, precision=precision)
    assert TrainConfig(steps=1, float8=True, precision="bfloat16").float8


# ------------------------------------------------------------------------------------------------------ several ranks


def trained(rank: int, world: int) -> dict[str, Any]:
    found = {}
    for precision in ("auto", "bfloat16"):
        for float8 in (False, True):
            model, optimizer = build(train=replace(TRAIN, precision=precision, float8=float8))
            names = float8_names(model)
            lines = [(r.loss, r.grad_norm, r.applied) for r in run_steps(model, optimizer, rank, world, 0, 3)]
            kinds = {str(p.dtype) for p in model.parameters()}
            kinds |= {str(state["exp_avg"].dtype) for state in optimizer.state.values()}
            found[precision, float8] = names, lines, full_weights(model), kinds
    return found


@pytest.fixture(scope="module")
def runs() -> dict[int, dict[str, Any]]:
    return {world: run_ranks(world, trained)[0] for world in (1, 2)}


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_sharded_training_in_float8_is_close_and_does_not_depend_on_the_world_size(runs: Any, precision: Any) -> None:
    plain, one, two = runs[2][precision, False], runs[1][precision, True], runs[2][precision, True]
    assert len(two[0]) == 14 and not plain[0] and two[3] == {"torch.float32"}
    for mine, alone, theirs in zip(two[1], one[1], plain[1], strict=True):
        assert mine[2] and mine[0] == pytest.approx(theirs[0], rel=0.03) and mine[0] != theirs[0]
        assert mine[:2] == pytest.approx(alone[:2], rel=0.02)
    assert two[1][0][0] == pytest.approx(one[1][0][0], rel=1e-4), "the first step has the same weights everywhere"
    assert all(np.isfinite(weight).all() for weight in two[2].values())
