"""What rank 0 sends: the numbers of steps that it did not look at while they ran.

    python -m pytest -q tests/train/test_step_reports.py
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pretrainer.config import MonitorConfig
from pretrainer.train import reporter as reporters
from pretrainer.train.readback import StepResult
from pretrainer.train.reporter import Reporter
from pretrainer.train.spec import TrainState
from pretrainer.train.spikes import Verdict
from pretrainer.train.telemetry.monitor import Monitor
from pretrainer.train.telemetry.phases import Phases
from tests.train.samples import CPU
from tests.train.specs import worker_spec


class Gauge:
    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def set_default_tags(self, _tags: Any) -> None: ...

    def set(self, _value: float) -> None: ...


class Result(StepResult):
    """A step's result that knows whether anyone has looked."""

    looked: list[float] = []

    def __init__(self, loss: float, norm: float, applied: bool) -> None:
        verdict = Verdict(torch.tensor(applied), torch.tensor(0), torch.full((2,), torch.inf))
        super().__init__(torch.tensor(loss), torch.tensor(norm), verdict)

    @property
    def loss(self) -> float:
        self.looked.append(super().loss)
        return super().loss


def test_steps_are_looked_at_when_they_are_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporters, "Gauge", Gauge)
    monkeypatch.setattr(Result, "looked", [])
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(Reporter, "_send", lambda _self, event: sent.append(event))
    spec = worker_spec()
    spec = replace(spec, config=replace(spec.config, train=replace(spec.config.train, log_every_steps=3)))
    reporter = Reporter(spec, 0, 1, CPU, Phases(0, 1, 0, "node", print, 5.0))
    state, monitor = TrainState(), Monitor(MonitorConfig(), nn.Linear(1, 1), 2, lambda _number: 0, CPU)
    for step in range(1, 7):
        state.step = step
        reporter.step(state, Result(float(step), step / 2, step != 2), 0.1 * step, 10 + step, 0.0, monitor)
        assert max(Result.looked) == (1 if step < 3 else 3 if step < 6 else 6)
    lines = [line for event in sent for line in event["steps"]]
    assert [len(event["steps"]) for event in sent] == [1, 2, 3]  # the first step of a worker group is told at once
    assert [(line["step"], line["loss"], line["grad_norm"], line["applied"]) for line in lines] == [
        (step, float(step), step / 2, step != 2) for step in range(1, 7)
    ]
    assert [(line["learning_rate"], line["targets"]) for line in lines] == [(0.1 * s, 10 + s) for s in range(1, 7)]
    assert all(line["time_s"] > 0 for line in lines)
