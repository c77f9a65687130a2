"""Layers with float32 parameters that read bfloat16: what they give, and gradients in float32.

    python -m pytest -q tests/model/test_cast.py
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pretrainer.model.cast import LayerNorm, Linear, like
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
