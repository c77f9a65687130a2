"""Layers with float32 parameters that read bfloat16: what they give, and gradients in float32.

    python -m pytest -q tests/model/test_cast.py
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrainer.model.cast import LayerNorm, Linear, like, together
from pretrainer.model.norms import RMSNorm

LAYERS = {"linear": Linear(8, 8), "layer norm": LayerNorm(8), "rms norm": RMSNorm(8, eps=1e-5)}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_in_the_type_that_it_reads(name: str) -> None:
    layer, x = LAYERS[name], torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    layer.zero_grad()
    out = layer(x)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    plain = {n: p.detach().bfloat16().requires_grad_() for n, p in layer.named_parameters()}
    expected = torch.func.functional_call(layer, plain, (x,))
    expected.float().square().sum().backward()
    assert torch.equal(out, expected)
    for parameter_name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32
        assert torch.equal(parameter.grad, plain[parameter_name].grad.float())  # type: ignore[union-attr]


def test_a_parameter_is_itself_where_its_type_is_right_and_under_autocast() -> None:
    parameter = nn.Parameter(torch.ones(3))
    assert like(parameter, torch.ones(1)) is parameter
    assert like(parameter, torch.ones(1).bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert like(parameter, torch.ones(1).bfloat16()) is parameter


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_together_give_what_each_gives(dtype: torch.dtype, bias: bool) -> None:
    layers = [Linear(8, width, bias=bias) for width in (12, 4, 4)]
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    each, joint = x.clone().requires_grad_(), x.clone().requires_grad_()
    found: list[list[torch.Tensor]] = []
    for read, outs in ((each, [layer(each) for layer in layers]), (joint, together(layers, joint))):
        for layer in layers:
            layer.zero_grad()
        sum((out.float() * (number + 1)).square().sum() for number, out in enumerate(outs)).backward()  # type: ignore
        assert read.grad is not None
        found.append([*outs, read.grad, *(p.grad for layer in layers for p in layer.parameters())])  # type: ignore
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-1}
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, **tolerance)


def test_a_layer_of_another_kind_is_called_by_itself() -> None:
    class Other(Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((*x.shape[:-1], self.out_features), 7.0)

    layers = [Linear(8, 4), Other(8, 4), Linear(8, 4)]
    assert torch.equal(together(layers, torch.ones(2, 8))[1], torch.full((2, 4), 7.0))
