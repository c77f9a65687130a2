"""One trial of a sweep, in an actor of Ray Tune: a whole run of the real trainer, on the sweep's prepared tokens.

What the trainer promises holds in trials too: they save, go on exactly where they stopped, and can be verified,
evaluated and continued by the other commands. A trial that is to end early is told so by a record in storage and ends
like a run that gets SIGTERM, with a checkpoint: Tune's own way is to kill the driver, which leaves workers and statuses
behind.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from typing import Any

from ray import tune

from pipelines.driver.cli import Cluster
from pipelines.driver.preflight import check, plan_lines
from pipelines.driver.progress import Console
from pipelines.driver.recording import Recording
from pipelines.driver.records import read_json
from pipelines.driver.start import already_complete, open_data
from pretrainer.config import Config
from pretrainer.errors import LeaseError, PretrainerError
from pretrainer.lease import Lease, acquire
from pretrainer.pooled import pooled_bits_per_byte, pooled_loss
from pretrainer.storage import Store
from pretrainer.tracking import PARENT_TAG, Tracker
from pretrainer.train.checkpoints.committed import committed_checkpoint
from pretrainer.tuning.records import COMPLETED, FAILED, RUNNING, STOPPED, Records, Report
from pretrainer.tuning.space import trial_config

LEASE_PATIENCE_S = 90.0
"""The trial of a driver that was killed may live a little longer."""


@dataclass(frozen=True)
class TrialTask:
    """What every trial of a sweep needs to know; picklable."""

    base: Config
    sweep_uri: str
    there: Cluster
    mlflow_uri: str
    mlflow_run_id: str

    def config_of(self, name: str, parameters: dict[str, Any]) -> Config:
        """ConfigError where the parameters are not possible."""
        sweep = Store(self.sweep_uri)
        config = trial_config(self.base, parameters, name, sweep.child("trials").uri, self.sweep_uri)
        return replace(config, tracking=replace(config.tracking, uri=self.mlflow_uri))


def run_trial(asked: dict[str, str], task: TrialTask) -> None:
    """Tune's trainable: train the trial of this name until its end, its verdict or its failure, all on record."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    records, name, started_s = Records(Store(task.sweep_uri)), asked["name"], time.time()
    before = records.read(name).progress
    try:
        status, message = _run(records, name, task, started_s)
    except PretrainerError as error:  # a mistake in this trial's values, its storage, its data: the others go on
        status, message = FAILED, str(error)
    now = records.read(name).progress
    records.write(
        name,
        replace(
            now, status=status, message=message, seconds=before.seconds + time.time() - started_s,
            trained_tokens=max(now.trained_tokens, _trained(records.folder(name), task, name)),
        ),
    )  # fmt: skip
    tune.report({"status": status})


def _trained(run: Store, task: TrialTask, name: str) -> int:
    committed = committed_checkpoint(run)
    if committed is None:
        return 0
    parameters = Records(Store(task.sweep_uri)).read(name).parameters
    return committed[1] * task.config_of(name, parameters).train.global_batch_tokens


def _run(records: Records, name: str, task: TrialTask, started_s: float) -> tuple[str, str]:
    """(status, why) of the trial at its end."""
    trial, run = records.read(name), records.folder(name)
    records.write(name, replace(trial.progress, status=RUNNING, message="", starts=trial.progress.starts + 1))
    if trial.verdict is not None:  # the sweep was interrupted between the verdict and the end
        _close_tracking(task, name, run)
        return STOPPED, trial.verdict
    config = task.config_of(name, trial.parameters)
    console = TrialConsole(started_s, config, records, name)
    manifest = check(config, run, task.there)
    if already_complete(run, config) is not None:
        return COMPLETED, ""
    lease = _lease(run, config)
    lease.start()
    try:
        console.plan(run, task.there, plan_lines(config, manifest, task.there, config.vocab_size))
        tags = {PARENT_TAG: task.mlflow_run_id, "sweep": task.sweep_uri, "trial": str(trial.number)}
        recording = Recording.begin(config, run, lease, tags)
        data = open_data(config, run, console)
        # With torch behind them, and only behind the checks: a mistake is told in two seconds instead of five.
        from pipelines.driver.results import finish
        from pipelines.driver.session import Session, train

        session = Session.open(config, run, data, task.there, started_s, lease, recording)
        console.recorder = session.recorder
        outcome = train(session, console)
        finish(session, outcome, console, exports=False)
        console.keep_log()
    finally:
        lease.release()
    verdict = records.read(name).verdict
    if outcome.status == "completed":
        return COMPLETED, ""
    if outcome.status == "stopped" and outcome.exit_code == 0 and verdict is not None:
        return STOPPED, verdict
    return FAILED, outcome.message or f"it ended as {outcome.status}"


def _lease(run: Store, config: Config) -> Lease:
    deadline = time.monotonic() + LEASE_PATIENCE_S
    while True:
        try:
            return acquire(run, "a trial of a sweep", config.cluster.heartbeat_s, config.cluster.takeover_s)
        except LeaseError:
            if time.monotonic() > deadline:
                raise
            time.sleep(2.0)


def _close_tracking(task: TrialTask, name: str, run: Store) -> None:
    """The MLflow run of a trial whose driver was killed after its verdict."""
    known = read_json(run, "mlflow.json")
    if known is not None:
        tracker = Tracker(known["uri"], task.base.tracking.experiment, None, name, known["run_id"], {}, {})
        tracker.start()
        tracker.finish("stopped", {})


class TrialConsole(Console):
    """Keeps what a run prints beside the trial, and takes its reports to the records, MLflow and Tune."""

    def __init__(self, started_s: float, config: Config, records: Records, name: str) -> None:
        super().__init__(started_s, config)
        self.records, self.name = records, name
        self.recorder: Any = None
        self.lines: list[str] = []
        self.noise_tokens: float | None = None

    def say(self, text: str = "") -> None:
        self.lines.append(text)

    def keep_log(self) -> None:
        self.records.folder(self.name).write("console.log", "\n".join([*self.lines, ""]).encode())

    def event(self, event: dict[str, Any], starts: Any = ()) -> None:
        super().event(event, starts)
        if event["kind"] == "look":
            self.noise_tokens = event["noise_scale_tokens"]
        every = self.config.train.validate_every_steps
        if event["kind"] == "validation" and event["step"] > 0 and event["step"] % every == 0:
            self.report(event)

    def report(self, event: dict[str, Any]) -> None:
        """Storage first, then those who are told; the answer of the scheduler is in storage when Tune lets us go on."""
        found = _held_out(event, self.config, self._bytes())
        progress = replace(
            self.records.read(self.name).progress.with_report(found), noise_scale_tokens=self.noise_tokens,
            trained_tokens=found.tokens,
        )  # fmt: skip
        self.records.write(self.name, progress)
        values = {"loss": found.loss, "bits_per_byte": found.bits_per_byte, "tokens": found.tokens}
        told = {"kind": "report", "step": found.step, **values, "noise_scale_tokens": self.noise_tokens}
        self.recorder.record.remote(told)
        self.keep_log()
        tune.report({**values, "status": RUNNING})
        if self.records.read(self.name).verdict is not None:
            self.recorder.request_stop.remote()

    def _bytes(self) -> dict[str, int]:
        assert self.frozen is not None
        return {name: held.bytes for name, held in self.frozen.held_out.items()}


def _held_out(event: dict[str, Any], config: Config, sizes: dict[str, int]) -> Report:
    sources, loss = event["sources"], pooled_loss(event["sources"])
    bits = pooled_bits_per_byte({name: values["bits_per_byte"] for name, values in sources.items()}, sizes)
    batch = config.train.global_batch_tokens
    return Report(event["step"], event["step"] * batch, loss if math.isfinite(loss) else math.inf, bits)
