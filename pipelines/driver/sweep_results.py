"""What is left of a sweep: the best config, summary.json, the page, MLflow's parent run, the last tables."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines.driver.records import read_json
from pretrainer.config import Config
from pretrainer.config_load import to_delta_yaml
from pretrainer.data.prologue import Frozen
from pretrainer.errors import TrackingError
from pretrainer.plan.report import as_text
from pretrainer.storage import Store
from pretrainer.tracking import Tracker, default_uri
from pretrainer.tuning.fit import valleys
from pretrainer.tuning.page import render
from pretrainer.tuning.records import Trial, flat
from pretrainer.tuning.report import Sweep, interval_words, points, tables
from pretrainer.tuning.space import LEARNING_RATE, same_warmup, total_tokens, with_parameters

log = logging.getLogger(__name__)

BEST = "best.yaml"
PAGE = "sweep.html"


@dataclass
class SweepTracker:
    """The sweep's own MLflow run, the parent of its trials'. The sweep goes on without it."""

    tracker: Tracker
    uri: str
    run_id: str

    @classmethod
    def open(cls, config: Config, run: Store, fingerprint: str) -> SweepTracker:
        uri, artifacts = (
            (config.tracking.uri, None) if config.tracking.uri else default_uri(config.run.storage, run.is_local)
        )
        known = read_json(run, "mlflow.json") or {}
        tags = {"fingerprint": fingerprint, "run_folder": run.uri, "sweep": run.uri}
        tracker = Tracker(
            uri, config.tracking.experiment, artifacts, config.run.name, known.get("run_id"),
            flat(json.loads(json.dumps(asdict(config)))), tags,
        )  # fmt: skip
        run_id = tracker.start()
        run.write("mlflow.json", json.dumps({"uri": uri, "run_id": run_id}).encode())
        return cls(tracker, uri, run_id)

    def log(self, values: list[tuple[str, float, int]]) -> None:
        try:
            self.tracker.log_metrics(values, time.time())
        except TrackingError as error:
            log.warning("%s; the sweep's records are complete without it", error)

    def finish(self, status: str, artifacts: dict[str, str | bytes]) -> None:
        try:
            self.tracker.finish(status, artifacts)
        except TrackingError as error:
            log.warning("%s; the sweep's folder is complete without it", error)


def finish_sweep(
    config: Config, run: Store, data: Frozen, trials: list[Trial], tracker: SweepTracker, console: Any
) -> int:
    """Write everything down and print it; returns the exit code: 0 when every trial is over and one has completed."""
    sweep = Sweep(config, trials, (), data.vocab_size)
    if not sweep.is_ladder:
        sweep = replace(sweep, valleys=valleys(points(config, trials)))
    left = [trial.name for trial in trials if not trial.progress.is_over]
    page = render(sweep)
    artifacts: dict[str, str | bytes] = {PAGE: page}
    run.write(PAGE, page)
    if sweep.winner is not None:
        text = best_text(sweep, run)
        run.write(BEST, text.encode())
        artifacts[BEST] = text
    status = "stopped" if left else "completed" if sweep.winner is not None else "failed"
    summary = json.dumps(summarise(sweep, run, status, tracker), indent=1)
    run.write("summary.json", summary.encode())
    tracker.log(sweep_metrics(sweep))
    tracker.finish(status, {**artifacts, "summary.json": summary, "result.txt": as_text(tables(sweep))})
    console.say("\n" + as_text(tables(sweep)))
    console.say(f"\npicture: {run.child(PAGE).uri}")
    console.say(f"MLflow:  mlflow ui --backend-store-uri {tracker.uri}")
    if sweep.winner is not None:
        console.say(f"best:    python -m pipelines.pretrain --config {run.child(BEST).uri.removeprefix('file://')}")
    if left:
        print(f"\nerror: {len(left)} trials are not over: the same command goes on with them", file=sys.stderr)
    elif sweep.winner is None:
        print("\nerror: no trial went to its end; the table above says why", file=sys.stderr)
    return 0 if status == "completed" else 1


def sweep_metrics(sweep: Sweep) -> list[tuple[str, float, int]]:
    step = sum(trial.progress.is_over for trial in sweep.trials)
    values = {"sweep/trained_tokens": float(sweep.trained_tokens)}
    if sweep.winner is not None:
        values["sweep/best_loss"] = sweep.winner.losses[-1]
    for valley in sweep.valleys:
        if valley.is_inside:
            values[f"sweep/optimum/{valley.batch_tokens}/learning_rate"] = valley.best
            values[f"sweep/optimum/{valley.batch_tokens}/loss"] = valley.floor
    return [(name, value, step) for name, value in values.items()]


def best_config(sweep: Sweep, run: Store) -> Config:
    """The config of the sweep with the best trial's parameters, as a run of its own on the sweep's tokens."""
    assert sweep.winner is not None
    config = with_parameters(sweep.config, sweep.winner.parameters)
    train = same_warmup(sweep.config, config.train, sweep.winner.parameters)
    train = replace(train, steps=None, tokens=total_tokens(sweep.config, sweep.winner.parameters))
    return replace(
        config,
        run=replace(config.run, name=f"{config.run.name}-best", data_from=run.uri),
        train=train,
        sweep=type(config.sweep)(),
    )


def best_text(sweep: Sweep, run: Store) -> str:
    """best.yaml."""
    winner = sweep.winner
    assert winner is not None
    lines = [
        f"# The best of {len(sweep.trials)} trials of sweep {sweep.config.run.name}: {winner.name}, held-out loss "
        f"{winner.losses[-1]:.4f}.",
    ]
    rate = float(winner.parameters.get(LEARNING_RATE, sweep.config.train.learning_rate))
    for valley in sweep.valleys:
        if valley.is_inside and any(p.learning_rate == rate and p.loss == winner.losses[-1] for p in valley.points):
            interval = f", {interval_words(valley.interval)}" if valley.interval else ""
            lines.append(f"# The fitted optimum of its batch is a learning rate of {valley.best:.3g}{interval}.")
    lines.append("# Written by `python -m pipelines.tune`. It trains on the sweep's prepared tokens (run.data_from).")
    return "\n".join(lines) + "\n" + to_delta_yaml(best_config(sweep, run))


def summarise(sweep: Sweep, run: Store, status: str, tracker: SweepTracker) -> dict[str, Any]:
    """The content of summary.json."""
    winner = sweep.winner
    return {
        "sweep": sweep.config.run.name,
        "status": status,
        "tokens_of_a_trial": total_tokens(sweep.config),
        "trained_tokens": sweep.trained_tokens,
        "whole_tokens": sweep.whole_tokens,
        "best": None if winner is None else {
            "trial": winner.name, "parameters": winner.parameters, "loss": winner.losses[-1],
            "bits_per_byte": winner.progress.reports[-1].bits_per_byte, "config": run.child(BEST).uri,
        },
        "noise_scale_tokens": sweep.noise_scale_tokens,
        "optima": [
            {
                "batch_tokens": valley.batch_tokens, "learning_rate": valley.best, "loss": valley.floor,
                "interval": valley.interval, "inside": valley.is_inside,
            }
            for valley in sweep.valleys
        ],
        "rate_over_batch": sweep.slope,
        "trials": [
            {
                "trial": trial.name, "parameters": trial.parameters, "status": trial.progress.status,
                "message": trial.progress.message, "losses": trial.losses, "starts": trial.progress.starts,
                "trained_tokens": trial.progress.trained_tokens, "seconds": trial.progress.seconds,
            }
            for trial in sweep.trials
        ],
        "page": run.child(PAGE).uri,
        "mlflow": {"uri": tracker.uri, "run_id": tracker.run_id},
    }  # fmt: skip
