"""Norms over the last dimension: RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467) and LayerNorm (Ba et al. 2016).

torch has a kernel for RMSNorm on GPUs alone; on the CPU its backward pass is a chain of a dozen operations, three times
as slow as LayerNorm's. But LayerNorm's kernel takes the mean and the scale from outside, and with a mean of 0 its
gradient differs from RMSNorm's by one term.

Shapes: H width, n vectors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor

from pretrainer.config import ModelConfig
from pretrainer.model.cast import LayerNorm, like


class RMSNorm(nn.RMSNorm):
    """torch's, with a faster backward pass on the CPU where it runs operation by operation."""

    def forward(self, x: Tensor) -> Tensor:
        weight = like(self.weight, x)
        if self.eps is None or not _runs_on_cpu(x, weight):
            return F.rms_norm(x, self.normalized_shape, weight, self.eps)
        return _CPURMSNorm.apply(x, weight, self.eps)


def _runs_on_cpu(x: Tensor, weight: Tensor) -> bool:
    is_plain = not isinstance(x, DTensor) and not isinstance(weight, DTensor) and x.dtype == weight.dtype
    return is_plain and x.is_cpu and x.dtype in (torch.float32, torch.float64) and not torch.compiler.is_compiling()


class _CPURMSNorm(torch.autograd.Function):
    """y = w x r with r = (mean(x^2) + eps)^-1/2.

    With g the gradient of y: dx = r (w g - x r mean(w g x r)) and dw = sum over vectors of g x r. LayerNorm's backward
    pass with mean 0 gives dw, and dx less r mean(w g).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        width = x.shape[-1]
        scale = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / width).add_(eps).rsqrt_()  # [n, 1]
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        width = x.shape[-1]
        by_x, by_weight, _by_bias = torch.ops.aten.native_layer_norm_backward(
            gradient, x, [width], torch.zeros_like(scale), scale, weight, None, [True, True, False]
        )
        by_x.addcmul_((gradient @ weight)[..., None] / width, scale)
        return by_x, by_weight, None


def make_norm(config: ModelConfig) -> nn.Module:
    """The norm of the config, over H."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.hidden, eps=config.norm_eps)
    return LayerNorm(config.hidden, eps=config.norm_eps, bias=config.bias == "all")
