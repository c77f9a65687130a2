"""What may be done about a spike: a decision, and the policies that make it from what all ranks know alike.

To add one, write a function and list it in POLICIES, and its name in config/stability.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from pretrainer.config.stability import StabilityConfig
from pretrainer.train.telemetry.audit import or_null


@dataclass(frozen=True)
class Heal:
    """A decision about the step where something showed."""

    number: int
    step: int
    reason: str  # of spikes.REASONS
    policy: str
    attempt: int  # the worker group that decided it
    loss: float
    grad_norm: float
    loss_bound: float  # infinite while the window is too short
    grad_norm_bound: float
    first_step: int = 0  # these steps are left out: first_step <= step < end_step
    end_step: int = 0
    to_step: int = -1  # training goes back to this committed checkpoint; -1 where it does not
    from_step: int = 0  # the factors hold from here on
    lr_factor: float = 1.0
    clip_factor: float = 1.0
    weights: str = ""  # by an earlier batch: sound (the own data of the step did it) or broken (a step before)
    seen: tuple[tuple[float, float], ...] = ()  # (loss, gradient norm) of the steps that are left out, as they were run
    time_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Fields; what is not finite is null."""
        numbers = ("loss", "grad_norm", "loss_bound", "grad_norm_bound")
        seen = [[or_null(value) for value in one] for one in self.seen]
        return {**asdict(self), **{name: or_null(getattr(self, name)) for name in numbers}, "seen": seen}

    def event(self) -> dict[str, Any]:
        """For the recorder."""
        return {"kind": "healing", **self.to_json(), "message": self.message, "action": self.action}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Heal:
        numbers = {name: or_else(fields[name], math.nan) for name in ("loss", "grad_norm")}
        bounds = {name: or_else(fields[name], math.inf) for name in ("loss_bound", "grad_norm_bound")}
        seen = tuple((or_else(loss, math.nan), or_else(norm, math.nan)) for loss, norm in fields["seen"])
        return cls(**{**fields, **numbers, **bounds, "seen": seen})

    @property
    def anew(self) -> bool:
        """A new worker group goes back to that checkpoint, which is not the last one."""
        return self.policy == "restart"

    @property
    def message(self) -> str:
        """One sentence of what showed."""
        what = {
            "not_finite": "loss or gradient is not finite",
            "loss_spike": f"loss {self.loss:.4g} is above {self.loss_bound:.4g}",
            "grad_norm_spike": f"gradient norm {self.grad_norm:.4g} is above {self.grad_norm_bound:.4g}",
        }
        return f"step {self.step}: {what[self.reason]}"

    @property
    def action(self) -> str:
        """What is done about it, in a few words."""
        left_out = f"steps {self.first_step} to {self.end_step - 1} are left out" if self.end_step else ""
        back = f"training goes back to step {self.to_step}" if self.to_step >= 0 else ""
        rate = f"the learning rate is multiplied by {self.lr_factor:g} from step {self.from_step} on"
        clip = f"the clipping norm is multiplied by {self.clip_factor:g} from step {self.from_step} on"
        stop = "the run stops" if self.policy == "stop" else ""
        parts = [back, left_out, rate if self.lr_factor != 1 else "", clip if self.clip_factor != 1 else "", stop]
        return ", ".join(part for part in parts if part) or "nothing is done (stability.on_spike=report)"


def or_else(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


# ------------------------------------------------------------------------------------------------------------- policies


@dataclass(frozen=True)
class Situation:
    """What a policy knows beside the spike itself."""

    config: StabilityConfig
    heals: tuple[Heal, ...]  # before this one
    saved_step: int  # of the checkpoint that is kept in memory
    next_step: int  # the first one that is not begun
    checkpoints: tuple[int, ...]  # steps that are committed and kept, ascending
    weights: str = ""  # as Heal.weights


def report(heal: Heal, at: Situation) -> Heal:
    """Nothing but a line in every log."""
    return heal


def skip(heal: Heal, at: Situation) -> Heal:
    """The step is left out. It was so on the device, before anyone looked: the loss is that of the weights before it,
    so a spike in it is the batch's doing or that of the steps before."""
    before = [h.step for h in at.heals if h.policy == "skip"]
    in_a_row = next(n for n in range(len(before) + 1) if heal.step - n - 1 not in before)
    if in_a_row >= at.config.max_heals:
        return stop(heal, at)
    return replace(heal, first_step=heal.step, end_step=heal.step + 1)


def roll_back(heal: Heal, at: Situation) -> Heal:
    """Back to the checkpoint in memory, and on without the guilty steps.

    Where a batch from before the first spike has its usual loss, the spike is the step's own data: it is left out, and
    so is the next one that spikes. Where it has not, the weights were harmed before: 1, 3, 7 … steps before the first
    spike are left out too, more each time it comes again before the next checkpoint. (PaLM, arXiv:2204.02311, 5.1, went
    back 100 steps and left out 200 to 500; a person chose them.)
    """
    before = [h for h in at.heals if h.policy == "rollback" and h.to_step == at.saved_step]
    if len(before) >= at.config.max_heals:
        return stop(heal, at)
    first = before[0].step if before else heal.step
    broken = [*(h.weights for h in before), at.weights].count("broken")
    left_out = max(at.saved_step, first - (2**broken - 1)), heal.step + 1
    return replace(heal, first_step=left_out[0], end_step=left_out[1], to_step=at.saved_step, weights=at.weights)


def cut_lr(heal: Heal, at: Situation) -> Heal:
    """A lower learning rate from the next step on; one spike makes one cut, however many steps it lasts."""
    if _has_just_cut(heal, at):
        return replace(heal, policy="report")
    return replace(heal, from_step=at.next_step, lr_factor=at.config.lr_factor)


def tighten_clip(heal: Heal, at: Situation) -> Heal:
    """A lower clipping norm from the next step on, likewise."""
    if _has_just_cut(heal, at):
        return replace(heal, policy="report")
    return replace(heal, from_step=at.next_step, clip_factor=at.config.clip_factor)


def restart(heal: Heal, at: Situation) -> Heal:
    """A new worker group from the checkpoint before the last one (or the last, where it is the only one), with a lower
    learning rate: the last may already hold what led to the spike."""
    if sum(h.policy == "restart" for h in at.heals) >= at.config.max_heals:
        return stop(heal, at)
    steps = [step for step in at.checkpoints if step <= heal.step]
    if not steps:
        return stop(heal, at)
    to_step = steps[-2] if len(steps) > 1 else steps[0]
    return replace(heal, to_step=to_step, from_step=to_step, lr_factor=at.config.lr_factor)


def stop(heal: Heal, at: Situation) -> Heal:
    """The run ends; its last checkpoint is from before the spike was seen."""
    return replace(heal, policy="stop")


def _has_just_cut(heal: Heal, at: Situation) -> bool:
    """What was in flight, and the window's next steps, still feel the spike that was cut for."""
    cuts = [h.from_step for h in at.heals if h.policy == heal.policy]
    return bool(cuts) and heal.step < cuts[-1] + at.config.min_steps


POLICIES: dict[str, Callable[[Heal, Situation], Heal]] = {
    "report": report,
    "skip": skip,
    "rollback": roll_back,
    "cut_lr": cut_lr,
    "tighten_clip": tighten_clip,
    "restart": restart,
    "stop": stop,
}
