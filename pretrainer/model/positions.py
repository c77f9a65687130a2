"""Where a token stands: rotary positions with their scalings (RoPE), and linear biases (ALiBi).

Shapes: B rows, S tokens, N query heads, D width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrainer.config import ModelConfig, RopeScalingConfig


def _frequencies(head_width: int, theta: float, device: torch.device) -> Tensor:
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device=device) / head_width
    return 1.0 / theta**exponents  # [D/2], radians per token


def _plain(scaling: RopeScalingConfig, head_width: int, theta: float, device: torch.device) -> Tensor:
    return _frequencies(head_width, theta, device)


def _linear(scaling: RopeScalingConfig, head_width: int, theta: float, device: torch.device) -> Tensor:
    """Position interpolation (Chen et al. 2023, arXiv:2306.15595): every dimension turns slower by the factor."""
    return _frequencies(head_width, theta, device) / scaling.factor


def _ntk(scaling: RopeScalingConfig, head_width: int, theta: float, device: torch.device) -> Tensor:
    """NTK-aware scaling: a larger base, so that the slowest dimension is stretched by the factor and the fastest not.

    As described in YaRN (Peng et al. 2023, arXiv:2309.00071, section 3.1). Departure from the "dynamic" form: the
    factor is fixed, since otherwise a document's logits would depend on the length of the row that it is packed in.
    """
    return _frequencies(head_width, theta * scaling.factor ** (head_width / (head_width - 2)), device)


def _yarn(scaling: RopeScalingConfig, head_width: int, theta: float, device: torch.device) -> Tensor:
    """NTK by parts (arXiv:2309.00071, section 3.2): between beta_fast and beta_slow turns a ramp over the dimensions,
    whose ends are rounded outward as in the authors' code."""
    context = scaling.original_context
    assert context is not None
    plain = _frequencies(head_width, theta, device)

    def dimension(turns: float) -> float:  # the one that turns so often within the original context
        return head_width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling.beta_fast)), 0)
    high = min(math.ceil(dimension(scaling.beta_slow)), head_width - 1)
    indices = torch.arange(head_width // 2, dtype=torch.float32, device=device)
    stretched = ((indices - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    return plain / scaling.factor * stretched + plain * (1 - stretched)


def _llama3(scaling: RopeScalingConfig, head_width: int, theta: float, device: torch.device) -> Tensor:
    """Llama 3.1 (Dubey et al. 2024, arXiv:2407.21783): by wavelength, with a linear ramp in its inverse between."""
    assert scaling.original_context is not None
    plain = _frequencies(head_width, theta, device)
    turns = scaling.original_context * plain / (2 * math.pi)  # within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return plain / scaling.factor * (1 - kept) + plain * kept


SCALINGS: dict[str, Callable[[RopeScalingConfig, int, float, torch.device], Tensor]] = {
    "none": _plain,
    "linear": _linear,
    "ntk": _ntk,
    "yarn": _yarn,
    "llama3": _llama3,
}


def rotary_frequencies(config: ModelConfig, device: torch.device | str = "cpu") -> Tensor:
    """Radians per token [D/2] float32 by which each pair of dimensions turns."""
    scaling = config.rope_scaling
    return SCALINGS[scaling.type](scaling, config.width_per_head, config.rope_theta, torch.device(device))


def rotary_factor(scaling: RopeScalingConfig) -> float:
    """What rotated queries and keys are multiplied with: YaRN's temperature (arXiv:2309.00071, eq. 22), else 1."""
    if scaling.type != "yarn":
        return 1.0
    given = scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if given is None else given


def rotary_tables(positions: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin [B, 1, S, D] float32 of positions [B, S], in the "rotate half" layout of Hugging Face.

    RoPE: Su et al. 2021, arXiv:2104.09864.
    """
    angles = positions[:, None, :, None].float() * rotary_frequencies(config, positions.device)  # [B, 1, S, D/2]
    angles = torch.cat((angles, angles), dim=-1)
    factor = rotary_factor(config.rope_scaling)
    return angles.cos() * factor, angles.sin() * factor


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, heads, S, D] by its positions; computed in float32, returned in the type of x.

    The gradient of a rotation is the rotation back, so autograd keeps nothing but the tables.
    """
    return _Rotation.apply(x, cos, sin)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(gradient, cos, sin, -1.0), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: float) -> Tensor:
    """Two passes over memory instead of the five of x * cos + cat(-second, first) * sin."""
    half, wide = x.shape[-1] // 2, x.float()
    turned = wide * cos
    turned[..., :half].addcmul_(wide[..., half:], sin[..., :half], value=-direction)
    turned[..., half:].addcmul_(wide[..., :half], sin[..., half:], value=direction)
    return turned.to(x.dtype)


def alibi_slopes(heads: int) -> list[float]:
    """What each head subtracts from a score per token of distance (Press et al. 2021, arXiv:2108.12409).

    2^(-8/n), 2^(-16/n), … for n heads, a power of two; for other numbers those of the next smaller power, then every
    other one of the next larger, as in the authors' code.
    """
    power = 2 ** int(math.log2(heads))
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-4 * (i + 1) / power) for i in range(0, 2 * power, 2)]
    return slopes + between[: heads - power]
