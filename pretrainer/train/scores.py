"""Task files, scored at checkpoints: by the workers behind the checkpoint, or by a task beside the training.

Behind it, so that what goes wrong there or takes long loses no step. A group that has to leave at once (a stop, a
preemption, another size) leaves its scores to the next one, which begins with what is missing of its checkpoint.
"""

from __future__ import annotations

import time
from functools import partial

import torch

from pretrainer.config.evaluation import Cadence
from pretrainer.model.transformer import Transformer
from pretrainer.storage import Store
from pretrainer.train.reporter import Reporter
from pretrainer.train.scoring.selection import read_point
from pretrainer.train.spec import TrainState, WorkerSpec
from pretrainer.train.step import all_reduce_sum
from pretrainer.train.telemetry.phases import Phases


class Scores:
    """Every rank has one and calls the same methods at the same steps."""

    def __init__(
        self, spec: WorkerSpec, model: Transformer, device: torch.device, rank: int, phases: Phases, reporter: Reporter
    ) -> None:
        self.spec, self.model, self.device, self.rank = spec, model, device, rank
        self.phases, self.reporter, self.evaluator = phases, reporter, spec.evaluator

    def beside(self, step: int, is_last: bool) -> Cadence | None:
        """How a task of its own is to score the checkpoint of a step, if it is."""
        asked = self.spec.config.evaluation.due(step, is_last)
        return asked if self.evaluator is not None and self.evaluator.beside else None

    def by_workers(self, step: int, is_last: bool) -> Cadence | None:
        asked = self.spec.config.evaluation.due(step, is_last)
        return asked if self.evaluator is not None and not self.evaluator.beside else None

    def score(self, state: TrainState, is_last: bool, folder: str) -> None:
        """With the weights of now, which are those of the checkpoint in this folder; training waits."""
        cadence = self.by_workers(state.step, is_last)
        if cadence is None or self.evaluator is None:
            return
        began_s = time.perf_counter()
        tick = partial(self.phases.enter, "evaluate", state.step)
        tasks = self.evaluator.score(self.model, self.device, cadence, tick)
        self.reporter.evaluation(state, cadence, tasks, time.perf_counter() - began_s, folder)

    def make_up(self, state: TrainState, is_last: bool, folder: str) -> None:
        """At a start from the checkpoint in this folder: score it, if the group before did not come to it."""
        cadence = self.by_workers(state.step, is_last) if state.step else None
        if cadence is None:
            return
        known = read_point(Store(self.spec.run_uri), state.step, cadence) if self.rank == 0 else None
        missing = self.rank == 0 and (known is None or known["folder"] != folder)
        if all_reduce_sum([float(missing)], "cpu")[0]:
            self.score(state, is_last, folder)
