"""Functions with a backward pass of their own against autograd through their definitions.

python -m pytest -q tests/model/test_norms.py
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pretrainer.model.ffn import ACTIVATIONS
from pretrainer.model.norms import RMSNorm
from pretrainer.model.positions import apply_rotary


def gradients(loss: Tensor, *of: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, of)


@pytest.mark.parametrize("shape", [(3, 16), (2, 5, 128), (2, 7, 4, 32), (1, 1)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
def test_rms_norm_is_its_definition(shape: tuple[int, ...], scale: float) -> None:
    norm = RMSNorm(shape[-1], eps=1e-5, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    x = (scale * (torch.randn(shape, dtype=torch.float64) + 0.3)).requires_grad_()
    weights = torch.randn(shape, dtype=torch.float64)
    plain = x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.weight
    torch.testing.assert_close(norm(x), plain, rtol=1e-12, atol=1e-12)
    found = gradients((norm(x) * weights).sum(), x, norm.weight)
    expected = gradients((plain * weights).sum(), x, norm.weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_rms_norm_of_a_part_of_a_tensor() -> None:
    """Neither the input nor the gradient need be contiguous."""
    norm, x = RMSNorm(8, eps=1e-5), torch.randn(4, 3, 16, requires_grad=True)
    part = x.transpose(0, 1)[..., ::2]
    torch.testing.assert_close(norm(part), nn.functional.rms_norm(part, (8,), norm.weight, 1e-5))
    weights = torch.randn(8, 4, 3).permute(2, 1, 0)
    found = gradients((norm(part) * weights).sum(), x, norm.weight)
    expected = gradients((nn.functional.rms_norm(part, (8,), norm.weight, 1e-5) * weights).sum(), x, norm.weight)
    torch.testing.assert_close(found, expected)


def test_rms_norm_in_bfloat16_and_where_it_is_traced_is_torch_s() -> None:
    x = torch.randn(4, 16, requires_grad=True)
    for norm, given in ((RMSNorm(16, dtype=torch.bfloat16), x.bfloat16()), (RMSNorm(16), x.bfloat16())):
        plain = nn.functional.rms_norm(given, (16,), norm.weight, norm.eps)
        assert torch.equal(norm(given), plain) and plain.dtype == norm(given).dtype
    traced = torch.compile(RMSNorm(16, eps=1e-5), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(traced(x), RMSNorm(16, eps=1e-5)(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_its_definition_and_turns_gradients_back(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 5, 8, dtype=dtype, requires_grad=True)
    angles = torch.randn(2, 1, 5, 4).repeat(1, 1, 1, 2)
    cos, sin = 1.3 * angles.cos(), 1.3 * angles.sin()  # YaRN's factor is in the tables
    wide = x.detach().float().requires_grad_()
    first, second = wide.chunk(2, -1)
    plain = wide * cos + torch.cat((-second, first), -1) * sin
    torch.testing.assert_close(apply_rotary(x, cos, sin), plain.to(dtype))
    weights = torch.randn(x.shape, dtype=dtype)
    (found,) = gradients((apply_rotary(x, cos, sin) * weights).sum(), x)
    (expected,) = gradients((plain * weights.float()).sum(), wide)
    torch.testing.assert_close(found, expected.to(dtype))


def test_squared_relu_is_its_definition() -> None:
    x = torch.tensor([-2.0, -0.0, 0.5, 3.0, torch.inf, torch.nan], requires_grad=True)
    found = ACTIVATIONS["relu2"](x)
    torch.testing.assert_close(found, x.relu().square(), equal_nan=True)
    kept = slice(0, 4)
    assert gradients(found[kept].sum(), x)[0][kept].tolist() == [0.0, 0.0, 1.0, 6.0]
