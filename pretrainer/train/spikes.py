"""Is a step's loss or gradient norm out of line? Judged on the device, before its update, without a look by the host.

Usual is what the last applied steps had: their median, and 1.4826 times the median distance from it, which is the
standard deviation of a normal distribution and hardly moves when single values are wild (Huber 1981). A value more than
`sigmas` of these above the median is a spike. Gradient norms are judged by their logarithm: they vary by factors, and
twice the usual one is nothing. OLMo's skip-step optimizer (arXiv:2501.00656, 3.3) does the same with mean and standard
deviation over 128 steps, which one spike widens. What is judged is reduced over all ranks before, so all of them judge
alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pretrainer.config.stability import StabilityConfig

REASONS = ("", "not_finite", "loss_spike", "grad_norm_spike", "overflow")
"""What a verdict's number stands for; overflow is float16's, and mended by its loss scale."""
NOT_FINITE, LOSS_SPIKE, GRAD_NORM_SPIKE, OVERFLOW = range(1, 5)

NORMAL = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
# A window that hardly varies makes no spike of rounding.
LEAST_LOSS_SPREAD = 0.01  # of the median
LEAST_NORM_SPREAD = 0.1  # of the logarithm
LEAST_NORM = 1e-30  # has a logarithm


@dataclass(frozen=True)
class Verdict:
    """Scalars on the device: may the step be applied, the number of a reason, and the bounds [2] of loss and norm."""

    applied: Tensor
    reason: Tensor
    bounds: Tensor

    @property
    def finite(self) -> Tensor:
        """Were loss and gradient norm finite?"""
        return (self.reason != NOT_FINITE) & (self.reason != OVERFLOW)


def plain_verdict(loss: Tensor, norm: Tensor) -> Verdict:
    """Without a window: every finite step is applied."""
    applied = loss.isfinite() & norm.isfinite()
    return Verdict(applied, torch.where(applied, 0, NOT_FINITE), torch.full((2,), math.inf, device=loss.device))


class Detector:
    """The window of applied steps, on the device; `state` goes into checkpoints."""

    def __init__(self, config: StabilityConfig, device: torch.device | str) -> None:
        self.config = config
        self.vetoes = config.on_spike == "skip"  # a spike is not applied; may be set for each step
        self.window = torch.full((2, config.window_steps), math.inf, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)  # of applied steps ever
        sigmas = [s if s > 0 else math.inf for s in (config.loss_sigmas, config.grad_norm_sigmas)]
        self.sigmas = torch.tensor(sigmas, dtype=torch.float64, device=device)

    @torch.no_grad()
    def judge(self, loss: Tensor, norm: Tensor) -> Verdict:
        """The verdict on a step; if it is to be applied, it becomes a part of the window. Scalars, the same on all
        ranks."""
        values = torch.stack([loss.double(), norm.double()])
        bounds = torch.where(self.count >= self.config.min_steps, self._bounds(), math.inf)
        finite = values.isfinite().all()
        loss_spikes, norm_spikes = (values > bounds) & finite
        reason = torch.where(norm_spikes, GRAD_NORM_SPIKE, 0)
        reason = torch.where(loss_spikes, LOSS_SPIKE, reason)
        reason = torch.where(finite, reason, NOT_FINITE)
        applied = (reason == 0) if self.vetoes else finite
        self._push(values, applied)
        return Verdict(applied, reason, bounds)

    def _bounds(self) -> Tensor:
        """[2] float64: loss and norm above these are spikes; in an empty window any number."""
        known = self.count.clamp(1, self.config.window_steps)
        window = torch.stack([self.window[0], self.window[1].clamp(min=LEAST_NORM).log()])
        median = self._median(window, known)
        spread = NORMAL * self._median((window - median[:, None]).abs().nan_to_num(math.inf), known)
        least = torch.stack([LEAST_LOSS_SPREAD * median[0].abs(), torch.full_like(median[1], LEAST_NORM_SPREAD)])
        loss, log_norm = median + self.sigmas * torch.maximum(spread, least)
        return torch.stack([loss, log_norm.exp()])

    @staticmethod
    def _median(values: Tensor, known: Tensor) -> Tensor:
        """The lower median [2] of the `known` smallest; what is not known is infinite. Sorting is deterministic on GPUs
        too, torch.median is not."""
        ranked = values.sort(dim=1, stable=True).values
        return ranked.gather(1, ((known - 1) // 2).expand(2, 1)).squeeze(1)

    def _push(self, values: Tensor, applied: Tensor) -> None:
        at = (self.count % self.config.window_steps).expand(2, 1)
        old = self.window.gather(1, at).squeeze(1)
        self.window.scatter_(1, at, torch.where(applied, values, old)[:, None])
        self.count += applied

    def state(self) -> dict[str, Any]:
        """{"losses": [...], "grad_norms": [...]}, oldest first; waits for the device."""
        count, size = int(self.count), self.config.window_steps
        order = torch.arange(max(0, count - size), count) % size
        losses, norms = self.window.cpu()[:, order].tolist()
        return {"losses": losses, "grad_norms": norms}

    def load(self, state: dict[str, Any] | None) -> None:
        """Go on from a `state`, of another window_steps too; from nothing with None."""
        self.window.fill_(math.inf)
        self.count.zero_()
        if state is not None:
            kept = torch.tensor([state["losses"], state["grad_norms"]], dtype=torch.float64).reshape(2, -1)
            kept = kept[:, -self.config.window_steps :]
            self.window[:, : kept.shape[1]] = kept.to(self.window.device)
            self.count.fill_(kept.shape[1])
