"""Linear layers that multiply in float8, applied to a built model from outside, before it is sharded.

The recipe is torchao's "tensorwise" one (torchao.float8, Float8LinearConfig): each operand is scaled so that its
largest element is the largest number of its type, anew at every product (dynamic scaling); activations and weights are
e4m3, gradients of outputs e5m2 (Micikevicius et al. 2022, arXiv:2209.05433); sums are float32, faster and rougher
within the tensor cores in the forward pass alone; results have the type of the input. Parameters stay what they are.
Under FSDP2 they are gathered in bfloat16 and scaled on each rank, all ranks alike.

A scale belongs to the rows of one micro-batch, so a step is still the same at every world size. Converting costs time
that torch.compile makes small: without it, only wide layers gain.

Shapes: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrainer.errors import ConfigError
from pretrainer.model.cast import Linear, like
from pretrainer.model.transformer import Transformer

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # of both sides of a matrix: what the tensor cores' kernels take
CAPABILITY = (8, 9)  # Ada; 9.0 is Hopper
SMALLEST = 1e-12  # largest element of a tensor that is all zeros


def check_float8(device: torch.device) -> None:
    """Raise ConfigError for a GPU that has no float8."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        has = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise ConfigError(
            f"train.float8=true needs a GPU of compute capability 8.9 or more (Ada, Hopper, Blackwell), and "
            f"{torch.cuda.get_device_name(device)} has {has}: set train.float8=false"
        )


def use_float8(model: Transformer) -> int:
    """Make the linear layers inside the blocks multiply in float8, in place; returns how many.

    Those with a side that is no multiple of 16 stay; so do the output layer, embeddings, routers and routed experts.
    """
    found = 0
    for parent in list(model.blocks.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, Linear) and all(side % MULTIPLE == 0 for side in layer.weight.shape):
                setattr(parent, name, Float8Linear(layer))
                found += 1
    return found


class Float8Linear(nn.Module):
    """nn.Linear with the parameters of another one, by the same names."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N], in the type of x."""
        rows = x.flatten(0, -2)
        tokens = rows.shape[0]
        if tokens % MULTIPLE:  # the gradient of the weight sums over them
            rows = F.pad(rows, (0, 0, 0, -tokens % MULTIPLE))
        out = _Float8Product.apply(rows, like(self.weight, x))[:tokens].unflatten(0, x.shape[:-1])
        return out if self.bias is None else out + like(self.bias, x)


class _Float8Product(torch.autograd.Function):
    """x [T, K] @ weight [N, K]^T."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        # What is saved exists anyway (FSDP2 frees and gathers the weight behind our back); converting again is cheap.
        ctx.save_for_backward(x, weight)
        return _product(_scaled(x, FORWARD), _scaled(weight, FORWARD), x.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        out = _scaled(gradient, BACKWARD)
        by_x = _product(out, _transposed(_scaled(weight, FORWARD)), x.dtype)
        by_weight = _product(_transposed(out), _transposed(_scaled(x, FORWARD)), weight.dtype)
        return by_x, by_weight


def _scaled(tensor: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(float8 matrix, float32 scalar to multiply it with); an element that is not finite makes both NaN."""
    # In float64, as torchao: compiled and eager code then have the same scale.
    largest = tensor.abs().amax().double().clamp(min=SMALLEST)
    limit = torch.finfo(dtype).max
    scale = (limit / largest).float()
    return (tensor.float() * scale).clamp(-limit, limit).to(dtype), scale.reciprocal()


def _transposed(matrix: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return matrix[0].t().contiguous(), matrix[1]


def _product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], dtype: torch.dtype, fast: bool = False) -> Tensor:
    """a [m, k] @ b [n, k]^T: the kernels want the summed side contiguous in both."""
    return torch._scaled_mm(
        a[0].contiguous(), b[0].t(), scale_a=a[1], scale_b=b[1], out_dtype=dtype, use_fast_accum=fast
    )
