"""AdamW one parameter at a time, in float32 whatever type its moments are kept in.

torch's own AdamW computes in the type of the moments; this one reads them, computes in float32, and rounds only what it
keeps. bfloat16 moments are those of DeepSeek-V3 (arXiv:2412.19437, 3.3.3), which saw no loss from them; they take 4
bytes per parameter instead of 8. Rounding is to the nearest, ties to even, so the result is a function of the gradients
alone. What it costs: a second moment stops moving once an update is below half a unit of its 8 bits, that is when g²
is within 2^-8 / (1 - beta2) of it (8 % at beta2 = 0.95). TrainConfig refuses beta2 above 0.98 for this reason.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """This rank's elements of a tensor that may be sharded; a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def keep(old: Tensor, new: Tensor, skip: Tensor | None) -> None:
    """This rank's elements of `old` become `new`, rounded to its type, or stay to the bit where `skip` is true."""
    old = local(old)
    old.copy_(new if skip is None else torch.where(skip, old, new.to(old.dtype)))


def adamw_update(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Tensor],
    group: dict[str, Any],
    skip: Tensor | None = None,
) -> None:
    """One step of Loshchilov & Hutter 2019, arXiv:1711.05101, in place; every rank updates its own elements.

    state: `step` (float32 scalar), `exp_avg` and `exp_avg_sq` in any float type, all on the parameter's device. group:
    `lr`, `betas`, `eps`, `weight_decay`. skip: bool scalar, true where nothing may change; the host does not look.
    """
    beta1, beta2 = group["betas"]
    values, gradient = local(parameter), local(gradient).float()
    step = (state["step"] + 1).double()
    first = local(state["exp_avg"]).float().lerp(gradient, 1 - beta1)
    second = (local(state["exp_avg_sq"]).float() * beta2).addcmul_(gradient, gradient, value=1 - beta2)
    for moment, new in (("step", step), ("exp_avg", first), ("exp_avg_sq", second)):
        keep(state[moment], new, skip)
    denominator = second.sqrt_().div_((1 - beta2**step).sqrt_()).add_(group["eps"])
    update = first.div_(denominator).mul_(group["lr"] / (1 - beta1**step))
    keep(parameter, (values * (1 - group["lr"] * group["weight_decay"])).sub_(update), skip)
