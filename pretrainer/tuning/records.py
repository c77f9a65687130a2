"""What a sweep keeps in storage; it alone decides what is done and what is left, not what Ray Tune remembers.

    <sweep>/sweep.json                    what must stay the same for trials to be comparable
    <sweep>/trials/<name>/trial.json      number and parameters; created once, before the trial is started
    <sweep>/trials/<name>/progress.json   status, and a line per report; written by the trial
    <sweep>/trials/<name>/verdict.json    why it must end early; written by the scheduler before anyone acts on it
    <sweep>/trials/<name>/…               the trial is a whole run: config, checkpoints, audit log, summary

A trial is over when its progress says so. Anything else, a verdict included, is started again by the same command and
goes on from its last checkpoint; with a verdict it ends at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pretrainer.config import Config
from pretrainer.config.sweep import Value
from pretrainer.errors import ConfigError
from pretrainer.storage import Store
from pretrainer.tuning.optuna_search import Known
from pretrainer.tuning.space import total_tokens, trial_name

TRIALS = "trials"
COMPLETED, STOPPED, FAILED, RUNNING = "completed", "stopped", "failed", "running"


@dataclass(frozen=True)
class Report:
    """A look at a trial, at step `step`."""

    step: int
    tokens: int
    loss: float  # held-out, nats per token
    bits_per_byte: float


@dataclass(frozen=True)
class Progress:
    """How far a trial has come."""

    status: str = RUNNING
    message: str = ""
    reports: tuple[Report, ...] = ()
    noise_scale_tokens: float | None = None
    trained_tokens: int = 0  # those behind its last report included
    seconds: float = 0.0  # of training, over all its starts
    starts: int = 0

    @property
    def is_over(self) -> bool:
        return self.status in (COMPLETED, STOPPED, FAILED)

    def failed(self, message: str) -> Progress:
        return replace(self, status=FAILED, message=message)

    def with_report(self, report: Report) -> Progress:
        """In place of an earlier one of the same step: a trial that goes on from a checkpoint sees some twice."""
        kept = [one for one in self.reports if one.step != report.step]
        return replace(self, reports=tuple(sorted([*kept, report], key=lambda one: one.step)))


@dataclass(frozen=True)
class Trial:
    """A trial as storage knows it."""

    number: int
    name: str
    parameters: dict[str, Value]
    progress: Progress = field(default_factory=Progress)
    verdict: str | None = None

    @property
    def losses(self) -> list[float]:
        return [report.loss if math.isfinite(report.loss) else math.inf for report in self.progress.reports]

    @property
    def tokens(self) -> int:
        """That it has been seen to train on."""
        return self.progress.reports[-1].tokens if self.progress.reports else 0

    @property
    def final_loss(self) -> float | None:
        """Of a trial that went to its end."""
        return self.losses[-1] if self.progress.status == COMPLETED and self.losses else None

    @property
    def known(self) -> Known:
        """For the search: a trial that was ended early counts with the loss it had."""
        failed = self.progress.status == FAILED or not self.losses or not math.isfinite(self.losses[-1])
        loss = None if failed or not self.progress.is_over else self.losses[-1]
        return Known(self.parameters, loss, self.progress.is_over)


class Records:
    """The records of one sweep."""

    def __init__(self, sweep: Store) -> None:
        self.sweep = sweep

    def folder(self, name: str) -> Store:
        return self.sweep.child(f"{TRIALS}/{name}")

    def begin(self, config: Config) -> None:
        """Write down what all trials share; ConfigError, naming the field, if an earlier start had another."""
        now = json.loads(json.dumps(flat(shared_fields(config))))
        if not self.sweep.exists("sweep.json"):
            self.sweep.create("sweep.json", json.dumps(now, indent=1).encode())
        then = json.loads(self.sweep.read("sweep.json"))
        changed = sorted(name for name in {*now, *then} if now.get(name) != then.get(name))
        if changed:
            told = ", ".join(f"{name} was {then.get(name)!r} and is {now.get(name)!r}" for name in changed[:3])
            raise ConfigError(
                f"sweep {self.sweep.uri} was begun with another config, and its trials would not be comparable: {told}"
                f"{' …' if len(changed) > 3 else ''}. Put it back, or give the new sweep another run.name"
            )

    def add(self, number: int, parameters: Mapping[str, Value]) -> Trial:
        """A new trial, on record before it starts."""
        trial = Trial(number, trial_name(number, parameters), dict(parameters))
        content = {"number": number, "name": trial.name, "parameters": trial.parameters}
        self.folder(trial.name).create("trial.json", json.dumps(content, indent=1).encode())
        return trial

    def trials(self) -> list[Trial]:
        """By number."""
        names = {entry.path.split("/")[1] for entry in self.sweep.list(TRIALS) if entry.path.endswith("/trial.json")}
        return sorted((self.read(name) for name in names), key=lambda trial: trial.number)

    def read(self, name: str) -> Trial:
        folder = self.folder(name)
        content, verdict = _read(folder, "trial.json"), _read(folder, "verdict.json")
        progress = _read(folder, "progress.json") or {}
        reports = tuple(Report(**report) for report in progress.pop("reports", ()))
        return Trial(
            **content, progress=Progress(**progress, reports=reports), verdict=verdict["reason"] if verdict else None
        )

    def write(self, name: str, progress: Progress) -> None:
        self.folder(name).write("progress.json", json.dumps(asdict(progress), indent=1).encode())

    def condemn(self, name: str, reason: str) -> None:
        """The trial must end; before it is told."""
        self.folder(name).write("verdict.json", json.dumps({"reason": reason}).encode())

    def pardon(self, name: str) -> None:
        """Without a scheduler a trial that was ended early goes on to its end."""
        trial = self.read(name)
        self.folder(name).delete("verdict.json")
        self.write(name, replace(trial.progress, status=RUNNING, message=""))


def shared_fields(config: Config) -> dict[str, Any]:
    """What decides the losses of trials beside their parameters."""
    searched = {dimension.field for dimension in config.sweep.space}
    plain = flat(json.loads(json.dumps({
        name: asdict(getattr(config, name)) for name in ("data", "tokenizer", "init", "model", "train", "stability")
    })))  # fmt: skip
    where = {f"train.{name}" for name in (
        "num_workers", "cpus_per_worker", "gpus_per_worker", "threads_per_worker", "device", "checkpoint_every_steps",
        "log_every_steps", "keep_checkpoints", "async_checkpoints", "max_failures", "stall_timeout_s",
        "resize_stable_s", "steps", "tokens", "validate_every_steps", "sample_every_steps", "milestone_every_steps",
        "keep_best",
    )}  # fmt: skip
    kept = {name: value for name, value in plain.items() if name not in searched | where}
    return {**kept, "run.seed": config.run.seed, "sweep.reports": config.sweep.reports, "tokens": total_tokens(config)}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """section.field -> value; lists stay whole."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out.update(flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return out


def _read(store: Store, name: str) -> Any:
    try:
        return json.loads(store.read(name))
    except FileNotFoundError:
        return None
