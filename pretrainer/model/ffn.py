"""Feed-forward layers and dropout: parts of a block that look at one token at a time.

Shapes: B rows, S tokens, H hidden, F width of the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrainer.config import ModelConfig
from pretrainer.model.cast import Linear


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


class _ReluSquared(torch.autograd.Function):
    """Keeps max(x, 0) alone, which the gradient 2 max(x, 0) needs, where autograd would walk through two functions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (gradient * positive).mul_(2)


def _relu_squared(x: Tensor) -> Tensor:
    return _ReluSquared.apply(x)


# Of the gate where there is one: SwiGLU, GEGLU (Shazeer 2020, arXiv:2002.05202); GELU (Hendrycks & Gimpel 2016), with
# the tanh that GPT-2 has; squared ReLU (So et al. 2021, arXiv:2109.08668).
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": F.gelu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": F.relu,
    "relu2": _relu_squared,
}


class FeedForward(nn.Module):
    """down(act(gate x) * up x) with a gate, else down(act(up x)); [B, S, H] to [B, S, H]."""

    def __init__(self, config: ModelConfig, width: int) -> None:
        super().__init__()
        has_bias = config.bias == "all"
        self.activation = ACTIVATIONS[config.ffn]
        self.gate = Linear(config.hidden, width, bias=has_bias) if config.gated else None
        self.up = Linear(config.hidden, width, bias=has_bias)
        self.down = Linear(width, config.hidden, bias=has_bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


def make_dropout(config: ModelConfig) -> nn.Module:
    """Dropout; without any, a module that does nothing: torch's own takes 25 us to do it, nine times in four layers."""
    return nn.Dropout(config.dropout) if config.dropout else nn.Identity()
