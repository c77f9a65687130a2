"""What is done about a spike: decided once, written down before it is acted on, and only obeyed after a crash.

    healing/<number>.json     one object per decision (Heal), in the run folder

A decision names steps, so it means the same to every worker group, at every world size. Batch numbers never shift: a
step that is left out keeps its number and its line in the audit log, with applied=false and the reason. Policies decide
from reduced values alone, so that all ranks come to the same decision; rank 0 writes it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch.distributed as dist

from pretrainer.config.stability import StabilityConfig
from pretrainer.errors import UnstableError
from pretrainer.storage import Store
from pretrainer.train.checkpoints.committed import committed_checkpoints
from pretrainer.train.readback import StepResult
from pretrainer.train.stability.policies import POLICIES, Heal, Situation
from pretrainer.train.telemetry.audit import ATTEMPTS, AUDIT
from pretrainer.train.telemetry.auditlog import object_range

HEALING = "healing"

LossOf = Callable[[int], float]
"""A step since the checkpoint in memory -> the loss of its batch with the weights of now; every rank calls it."""


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
        return StepResult.left_out(*heal.seen[step - heal.first_step], heal.reason)

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
