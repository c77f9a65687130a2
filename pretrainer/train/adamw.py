"""AdamW one parameter at a time, in float32 whatever type its moments are kept in.

torch's own AdamW computes in the type of the moments; this one reads them, computes in float32, and rounds only what it
keeps. bfloat16 moments are those of DeepSeek-V3 (arXiv:2412.19437, 3.3.3), which saw no loss from them; they take 4
bytes per parameter instead of 8. Rounding is to the nearest, ties to even, so the result is a function of the gradients
alone. What it costs: a second moment stops moving once an update is below half a unit of its 8 bits, that is when g²
is within 2^-8 / (1 - beta2) of it (8 % at beta2 = 0.95). TrainConfig refuses beta2 above 0.98 for this reason.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """This rank's elements of a tensor that may be sharded; a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def adamw_update(parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """One step of Loshchilov & Hutter 2019, arXiv:1711.05101, in place; every rank updates its own elements.

    state: `step` (float32 scalar), `exp_avg` and `exp_avg_sq` in any float type. group: `lr`, `betas`, `eps`,
    `weight_decay`.
    """
    beta1, beta2 = group["betas"]
    state["step"] += 1
    step = state["step"].item()
    values, gradient = local(parameter), local(gradient).float()
    # `float` is the tensor itself where it is float32 already: then the state is updated in place.
    first = local(state["exp_avg"]).float().lerp_(gradient, 1 - beta1)
    second = local(state["exp_avg_sq"]).float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    values.mul_(1 - group["lr"] * group["weight_decay"])
    denominator = second.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    values.addcdiv_(first, denominator, value=-group["lr"] / (1 - beta1**step))
    local(state["exp_avg"]).copy_(first)
    local(state["exp_avg_sq"]).copy_(second)
