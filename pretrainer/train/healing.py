"""What is done about a spike: decided once, written down before it is acted on, and only obeyed after a crash.

    healing/<number>.json     one object per decision (Heal), in the run folder

A decision names steps, so it means the same to every worker group, at every world size. Batch numbers never shift: a
step that is left out keeps its number and its line in the audit log, with applied=false and the reason. Policies decide
from reduced values alone, so that all ranks come to the same decision; rank 0 writes it.

To add a policy, write a function and list it in POLICIES (and its name in config/stability.py).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch.distributed as dist

from pretrainer.config.stability import StabilityConfig
from pretrainer.errors import UnstableError
from pretrainer.storage import Store
from pretrainer.train.audit import ATTEMPTS, AUDIT
from pretrainer.train.auditlog import object_range
from pretrainer.train.committed import committed_checkpoints
from pretrainer.train.readback import StepResult

HEALING = "healing"

LossOf = Callable[[int], float]
"""A step since the checkpoint in memory -> the loss of its batch with the weights of now; every rank calls it."""


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
        seen = [[_or_null(value) for value in one] for one in self.seen]
        return {**asdict(self), **{name: _or_null(getattr(self, name)) for name in numbers}, "seen": seen}

    def event(self) -> dict[str, Any]:
        """For the recorder."""
        return {"kind": "healing", **self.to_json(), "message": self.message, "action": self.action}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Heal:
        numbers = {name: _or(fields[name], math.nan) for name in ("loss", "grad_norm")}
        bounds = {name: _or(fields[name], math.inf) for name in ("loss_bound", "grad_norm_bound")}
        seen = tuple((_or(loss, math.nan), _or(norm, math.nan)) for loss, norm in fields["seen"])
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


# ------------------------------------------------------------------------------------------------------------ decisions


class Healer:
    """A rank's view of what was decided; every rank has one and asks it the same questions."""

    def __init__(
        self, config: StabilityConfig, run: Store, rank: int, attempt: int, heals: Sequence[Heal], settled_until: int
    ) -> None:
        """settled_until: the audit log has these steps already, so they are not judged again."""
        self.config, self.run, self.rank, self.attempt = config, run, rank, attempt
        self.heals, self.settled_until = list(heals), settled_until
        self.restart: Heal | None = None  # was decided, and nobody has begun from its checkpoint yet
        self.seen: dict[int, tuple[float, float]] = {}  # since the checkpoint in memory

    @classmethod
    def open(cls, config: StabilityConfig, run: Store, rank: int, attempt: int, step: int) -> Healer:
        """Of a worker group that goes on at `step`: rank 0 reads what was decided before, and tells the others."""
        known = [(read_heals(run), logged_until(run, step), pending_restart(run)) if rank == 0 else None]
        if dist.is_initialized():
            dist.broadcast_object_list(known, src=0)
        heals, settled_until, restart = cast(Any, known[0])
        healer = cls(config, run, rank, attempt, heals, settled_until)
        healer.restart = restart if restart is not None and step > restart.to_step else None
        return healer

    def left_out(self, step: int) -> StepResult | None:
        """The result of a step that is not to be applied; None for all others."""
        heal = next((h for h in self.heals if h.first_step <= step < h.end_step), None)
        if heal is None:
            return None
        loss, norm = heal.seen[step - heal.first_step] if step - heal.first_step < len(heal.seen) else (math.nan,) * 2
        return StepResult.left_out(loss, norm, heal.reason)

    def lr_factor(self, step: int) -> float:
        """Multiplies the schedule's learning rate at this step."""
        return math.prod(h.lr_factor for h in self.heals if h.from_step <= step)

    def clip_factor(self, step: int) -> float:
        """Multiplies train.clip_norm at this step."""
        return math.prod(h.clip_factor for h in self.heals if h.from_step <= step)

    def vetoes(self, step: int) -> bool:
        """Whether a spike in this step keeps it from being applied, there and then."""
        return self.config.on_spike == "skip" and step >= self.settled_until and not self._is_decided(step)

    def look(
        self, step: int, result: StepResult, saved_step: int, next_step: int, loss_of: LossOf | None = None
    ) -> Heal | None:
        """What is to be done about a step that is finished; None for nothing. Written before it is returned.

        saved_step: of the checkpoint in memory. next_step: the first that is not begun. Every rank calls it with the
        same arguments. Raises UnstableError on all when the run is to stop.
        """
        self.seen[step] = result.loss, result.grad_norm
        if result.reason in ("", "overflow") or step < self.settled_until or self._is_decided(step):
            return None
        policy = self.config.on_nonfinite if result.reason == "not_finite" else self.config.on_spike
        weights = self._weights(step, result, saved_step, loss_of) if policy == "rollback" else ""
        decided = [self._decide(policy, step, result, saved_step, next_step, weights) if self.rank == 0 else None]
        if dist.is_initialized():
            dist.broadcast_object_list(decided, src=0)
        heal = cast(Heal, decided[0])
        self.heals.append(heal)
        if heal.policy == "stop":
            raise UnstableError(stop_message(heal, saved_step))
        return heal

    def forget(self, step: int) -> None:
        """A checkpoint of this step is kept in memory now: nothing goes back behind it."""
        self.seen = {known: values for known, values in self.seen.items() if known >= step}

    def _is_decided(self, step: int) -> bool:
        """A stop is a person's to think about: the same step is judged again under whatever policy there is then."""
        return any(h.step == step or h.first_step <= step < h.end_step for h in self.heals if h.policy != "stop")

    def _weights(self, step: int, result: StepResult, saved_step: int, loss_of: LossOf | None) -> str:
        """Whether the last batch that was fine still has a usual loss, with the weights of now."""
        first = next((h.step for h in self.heals if h.policy == "rollback" and h.to_step == saved_step), step)
        fine = [s for s in self.seen if saved_step <= s < first and self.left_out(s) is None]
        if loss_of is None or not fine:
            return ""
        return "sound" if loss_of(max(fine)) <= result.loss_bound else "broken"  # NaN is not

    def _decide(
        self, policy: str, step: int, result: StepResult, saved_step: int, next_step: int, weights: str
    ) -> Heal:
        """On rank 0: the decision, in storage."""
        number, values = len(self.heals), (result.loss, result.grad_norm, result.loss_bound, result.grad_norm_bound)
        heal = Heal(number, step, result.reason, policy, self.attempt, *values, time_s=time.time())
        checkpoints = tuple(committed_checkpoints(self.run))
        at = Situation(self.config, tuple(self.heals), saved_step, next_step, checkpoints, weights)
        heal = POLICIES[policy](heal, at)
        left_out = range(heal.first_step, heal.end_step)
        heal = replace(heal, seen=tuple(self.seen.get(one, (math.nan, math.nan)) for one in left_out))
        self.run.create(heal_path(number), json.dumps(heal.to_json(), sort_keys=True).encode())
        return heal


def stop_message(heal: Heal, saved_step: int) -> str:
    return (
        f"{heal.message}, and the run stops (stability.on_spike, on_nonfinite and max_heals decide that). The "
        f"checkpoint of step {saved_step} is from before. Look at the step's documents (python -m pipelines.trace RUN "
        f"--step {heal.step}); then give the same command with a lower train.learning_rate, or with "
        "stability.on_spike=rollback"
    )


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _or(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def heal_path(number: int) -> str:
    return f"{HEALING}/{number:06d}.json"


def read_heals(run: Store) -> list[Heal]:
    """Every decision of the run, in order."""
    return [Heal.from_json(json.loads(run.read(entry.path))) for entry in run.list(HEALING, recursive=False)]


def pending_restart(run: Store) -> Heal | None:
    """The newest decision to go back to an older checkpoint, until a worker group has begun from there."""
    heal = next((heal for heal in reversed(read_heals(run)) if heal.anew), None)
    later = [] if heal is None else run.list(ATTEMPTS, after=f"{heal.attempt:06d}.json")
    begun = [json.loads(run.read(entry.path))["step"] for entry in later]
    return heal if heal is not None and all(step > heal.to_step for step in begun) else None


def logged_until(run: Store, step: int) -> int:
    """The end of the steps from `step` on that the audit log has, of worker groups that ended before their commit."""
    ranges = (object_range(entry.path) for entry in run.list(AUDIT, recursive=False))
    return max([step, *(found[1] + 1 for found in ranges if found is not None and found[0] <= step <= found[1])])
