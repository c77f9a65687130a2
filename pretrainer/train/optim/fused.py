"""torch's AdamW with fused kernels, its step without what a host spends around them.

AdamW.step gathers its lists by device and type, counts each parameter's steps up and, where nothing may change, down
again, and under FSDP2 sends every list through DTensor. In a model of four layers that takes two thirds of the step's
time on a CPU, where nothing else runs meanwhile. Here the kernel gets this rank's elements as they are; it and its
results are the same. On GPUs torch's own step remains, which has been measured there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import AdamW

from pretrainer.train.optim.adamw import local


class FusedAdamW(AdamW):
    """For parameters on the CPU, of one type, whose state is complete from the start.

    As with torch's two float scalars may be set before a step: the gradient is divided by `grad_scale`, and where
    `found_inf` is 1 the step changes nothing.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a closure is not supported
        """Update every parameter that has a gradient."""
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            states = [self.state[p] for p in parameters]
            steps = [state["step"] for state in states]
            if not steps:
                continue
            torch._foreach_add_(steps, 1 if found_inf is None else [1 - found_inf] * len(steps))
            beta1, beta2 = group["betas"]
            torch._fused_adamw_(
                [local(p) for p in parameters],
                [local(p.grad) for p in parameters],
                [local(state["exp_avg"]) for state in states],
                [local(state["exp_avg_sq"]) for state in states],
                [], steps, lr=group["lr"], beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"],
                eps=group["eps"], amsgrad=False, maximize=False, grad_scale=getattr(self, "grad_scale", None),
                found_inf=found_inf,
            )  # fmt: skip
