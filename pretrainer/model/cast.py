"""Layers that compute in the type of what they read, whatever type their parameters are kept in.

Under FSDP2 a rank gathers its parameters in the type of matrix products, and nothing is left to do here. A rank that
has the whole model keeps it in float32: each use of a parameter casts it, and its gradient comes back in float32.

Shapes: K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


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


def together(layers: Sequence[nn.Module], x: Tensor) -> Sequence[Tensor]:
    """What each of the layers gives for x; all of them have a bias or none has.

    On the CPU as one product, which saves a small model two per cent of its step. Elsewhere one by one: what is joined
    stays until the backward pass, and on GPUs would be a copy of weights that FSDP2 gives back after the forward pass.
    """
    if not (x.is_cpu and all(type(layer) is Linear and not isinstance(layer.weight, DTensor) for layer in layers)):
        return [layer(x) for layer in layers]
    plain = cast(Sequence[Linear], layers)
    weights = [like(layer.weight, x) for layer in plain]
    biases = [like(layer.bias, x) for layer in plain if layer.bias is not None]
    product = F.linear(x, torch.cat(weights), torch.cat(biases) if biases else None)
    return product.split([weight.shape[0] for weight in weights], dim=-1)
