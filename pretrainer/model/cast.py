"""Layers that compute in the type of what they read, whatever type their parameters are kept in.

Under FSDP2 a rank gathers its parameters in the type of matrix products, and nothing is left to do here. A rank that
has the whole model keeps it in float32: each use of a parameter casts it, and its gradient comes back in float32.

Shapes: K inputs, N outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def like(parameter: Tensor, x: Tensor) -> Tensor:
    """The parameter in the type of x; under autocast as it is, which has rules of its own."""
    if parameter.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
        return parameter
    return parameter.to(x.dtype)


class Linear(nn.Linear):
    """[..., K] to [..., N]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, like(self.weight, x), None if self.bias is None else like(self.bias, x))


class LayerNorm(nn.LayerNorm):
    """Over the last dimension."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else like(self.bias, x)
        return F.layer_norm(x, self.normalized_shape, like(self.weight, x), bias, self.eps)
