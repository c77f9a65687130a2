"""Loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740), torch alone and without a look by the host.

float16 has 5 bits of exponent: gradients below 6e-8 are zero. So the loss is multiplied by a power of two before the
backward pass, and the gradient of the float32 parameters is divided by it again, which costs no bit. A scale that is
too large shows as a gradient that is not finite: that step is not applied, and the scale is halved. After many applied
steps in a row it is doubled. That is torch.amp.GradScaler's rule; what it decides from is reduced over all ranks, so
all of them have the same scale.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from pretrainer.train.spikes import OVERFLOW, Verdict

GROWTH_INTERVAL = 2_000  # applied steps in a row
GROWTH, BACKOFF = 2.0, 0.5
LEAST, MOST = 1.0, 2.0**40  # below, it is not the scale that makes a gradient infinite; above, it only may grow so far
FIRST_OF_A_TOKEN = 8.0


def first_scale(global_batch_tokens: int) -> float:
    """Scale of a new run: a token's own loss weighs 8 of it, or up to twice that.

    torch's first scale is 2^16 for means over some 2^13 tokens; the mean here is over the whole global batch.
    """
    return FIRST_OF_A_TOKEN * 2.0 ** math.ceil(math.log2(global_batch_tokens))


class LossScale:
    """The scale and how many steps in a row were applied with it; both stay on the device."""

    def __init__(self, device: torch.device | str, scale: float, good_steps: int = 0) -> None:
        self.scale = torch.tensor(scale, dtype=torch.float32, device=device)
        self.good_steps = torch.tensor(good_steps, dtype=torch.int64, device=device)

    @torch.no_grad()
    def unscale(self, model: nn.Module) -> None:
        """Divide the model's gradient by the scale, in place."""
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, self.scale.reciprocal())  # exact: a power of two

    @torch.no_grad()
    def update(self, finite: Tensor) -> None:
        """After a step; finite: bool scalar, were its loss and gradient."""
        good = torch.where(finite, self.good_steps + 1, 0)
        grows = good >= GROWTH_INTERVAL
        factor = torch.where(finite, torch.where(grows, GROWTH, 1.0), BACKOFF)
        self.scale.mul_(factor).clamp_(LEAST, MOST)
        self.good_steps.copy_(torch.where(grows, 0, good))

    def explain(self, verdict: Verdict) -> Verdict:
        """What is not finite is the scale's doing (overflow), as long as the scale can become smaller."""
        overflow = ~verdict.finite & (self.scale > LEAST)
        return replace(verdict, reason=torch.where(overflow, OVERFLOW, verdict.reason))

    def load(self, scale: float, good_steps: int) -> None:
        """Go on from what `read` gave."""
        self.scale.fill_(scale)
        self.good_steps.fill_(good_steps)

    def read(self) -> tuple[float, int]:
        """(scale, good steps) for a checkpoint; waits for the device."""
        return self.scale.item(), int(self.good_steps)
