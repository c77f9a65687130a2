"""What counts as a spike, and what a run does about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrainer.errors import require

Policy = Literal["report", "skip", "rollback", "cut_lr", "tighten_clip", "restart", "stop"]


@dataclass(frozen=True, kw_only=True)
class StabilityConfig:
    window_steps: int = 128
    """The last so many applied steps say which loss and which gradient norm are usual."""
    min_steps: int = 32
    """Applied steps before anything is called a spike, and between two cuts of the learning rate or the clipping."""
    loss_sigmas: float = 6.0
    """A loss so many robust standard deviations above the window's median is a spike; 0 looks for none."""
    grad_norm_sigmas: float = 6.0
    """A global gradient norm whose logarithm is so far above the window's median is a spike; 0 looks for none."""
    on_spike: Policy = "report"
    """report tells it; skip leaves the step out; rollback goes back to the last checkpoint and leaves the guilty steps
    out; cut_lr and tighten_clip go on with less; restart goes back a checkpoint further with a lower learning rate."""
    on_nonfinite: Policy = "skip"
    """The same for a loss or gradient that is not finite; such a step is never applied."""
    max_heals: int = 5
    """The run stops instead of skipping more steps in a row, or going back to one checkpoint more often, than this."""
    lr_factor: float = 0.5
    """cut_lr and restart multiply the learning rate of the rest of the run by this."""
    clip_factor: float = 0.5
    """tighten_clip multiplies train.clip_norm by this for the rest of the run."""

    def __post_init__(self) -> None:
        require(self.min_steps >= 4, "stability.min_steps", self.min_steps, "use 4 or more")
        require(
            self.window_steps >= self.min_steps,
            "stability.window_steps",
            self.window_steps,
            f"use stability.min_steps={self.min_steps} or more",
        )
        require(self.max_heals >= 1, "stability.max_heals", self.max_heals, "use 1 or more")
        for name in ("loss_sigmas", "grad_norm_sigmas"):
            require(getattr(self, name) >= 0, f"stability.{name}", getattr(self, name), "use 0 or more")
        for name in ("lr_factor", "clip_factor"):
            value = getattr(self, name)
            require(0 < value < 1, f"stability.{name}", value, "use a number between 0 and 1")
        require(
            self.on_nonfinite != "report",
            "stability.on_nonfinite",
            self.on_nonfinite,
            "such a step cannot be applied: use skip, or a policy that does more",
        )

    @property
    def rolls_back(self) -> bool:
        """Whether the workers must keep the last checkpoint and the blocks behind it in memory."""
        return "rollback" in (self.on_spike, self.on_nonfinite)
