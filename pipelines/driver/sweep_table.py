"""What a person sees while a sweep goes on: a line when a trial starts, reports or ends, and the table so far."""

from __future__ import annotations

import math
import time

from pipelines.driver.sweep_results import SweepTracker
from pipelines.driver.tuner import Board
from pretrainer.config import Config, DimensionConfig
from pretrainer.plan.report import as_text
from pretrainer.storage import Store
from pretrainer.tuning.records import COMPLETED, FAILED, Trial
from pretrainer.tuning.report import Sweep as SweepReport
from pretrainer.tuning.report import grid_table, is_grid_of_rates, plain, points
from pretrainer.tuning.space import count_trials, total_tokens


def range_words(dimension: DimensionConfig) -> str:
    return ", ".join(map(plain, dimension.values)) or f"{dimension.low:g} to {dimension.high:g}"


class SweepConsole:
    """Prints, and sends the sweep's own metrics."""

    def __init__(self, config: Config, board: Board, started_s: float, tracker: SweepTracker) -> None:
        self.config, self.board, self.started_s, self.tracker = config, board, started_s, tracker
        self.left_at_start, self.done_here = board.left, 0

    def say(self, text: str = "") -> None:
        print(text, flush=True)

    def begin(self, run: Store) -> None:
        sweep, total = self.config.sweep, count_trials(self.config.sweep)
        over = sum(trial.progress.is_over for trial in self.board.all)
        self.say(f"\nsweep {self.config.run.name} in {run.uri}")
        space = ", ".join(f"{d.field} {range_words(d)}" for d in sweep.space)
        self.say(f"  {'space':<22}{space}")
        self.say(f"  {'trials':<22}{total:,} by {sweep.search}, {total_tokens(self.config):,} tokens each, scheduler "
                 f"{sweep.scheduler}, {sweep.max_concurrent_trials} at a time")  # fmt: skip
        if self.board.all:
            self.say(f"  {'from before':<22}{over:,} are over, {len(self.board.unfinished):,} go on")

    def tell(self, kind: str, trial: Trial) -> None:
        """What happened to a trial: start, report, end."""
        getattr(self, f"_{kind}")(trial)

    def _start(self, trial: Trial) -> None:
        again = f", goes on after {trial.tokens:,} tokens" if trial.tokens else ""
        self.say(f"{self._clock()} trial {trial.name} starts{again}")

    def _report(self, trial: Trial) -> None:
        share = len(trial.losses) / self.config.sweep.reports
        verdict = "" if trial.verdict is None else "; ends early"
        loss = f"loss {trial.losses[-1]:.4f}{verdict}"
        self.say(f"{self._clock()} trial {trial.name}: {share:4.0%} of its tokens, {loss}")

    def _end(self, trial: Trial) -> None:
        progress, self.done_here = trial.progress, self.done_here + 1
        loss = f", loss {trial.losses[-1]:.4f}" if trial.losses else ""
        why = f": {progress.message}" if progress.message else ""
        word = "warning: trial" if progress.status == FAILED else "trial"
        self.say(f"{self._clock()} {word} {trial.name} {progress.status}{loss}{why}")
        best = min((t.final_loss for t in self.board.all if t.final_loss is not None), default=None)
        over = sum(one.progress.is_over for one in self.board.all)
        if progress.status == COMPLETED and best is not None and math.isfinite(best):
            self.tracker.log([("sweep/best_loss", best, over), ("sweep/trials_over", over, over)])
        left = self.left_at_start - self.done_here
        pace = (time.time() - self.started_s) / self.done_here
        about = f", about {pace * left / 60:.0f} min left" if left else ""
        told = "" if best is None else f", best loss {best:.4f}"
        self.say(f"{self._clock()} {over} of {count_trials(self.config.sweep)} trials are over{told}{about}")
        if is_grid_of_rates(SweepReport(self.config, self.board.all, (), 0)) and points(self.config, self.board.all):
            self.say(as_text([grid_table(self.config, self.board.all)]))

    def _clock(self) -> str:
        minutes, seconds = divmod(int(time.time() - self.started_s), 60)
        return f"[{minutes:02d}:{seconds:02d}]"
