"""What the driver watches while its workers train: the lease, ranks that stand still, failures that get nowhere."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.driver.culprits import Culprits
from pipelines.driver.forgetting import Forgetting
from pipelines.driver.gauges import Gauges
from pipelines.driver.lead import Lead
from pipelines.driver.records import read_json
from pipelines.driver.starts import STARTS, Starts
from pipelines.driver.waiting import Waiting
from pretrainer.config import Config
from pretrainer.data.curriculum import Curriculum
from pretrainer.data.prologue import Frozen
from pretrainer.lease import Lease
from pretrainer.storage import Store
from pretrainer.train.checkpoints.copies import Copies
from pretrainer.train.stability.health import Health
from pretrainer.train.telemetry.goodput import Goodput
from pretrainer.train.telemetry.phases import pulse_period_s
from pretrainer.train.telemetry.watchdog import Pulse, diagnose, failures_in_a_row

log = logging.getLogger(__name__)

KILL_PATIENCE_S = 20.0
GOODPUT = "goodput.json"
COPY_PATIENCE_S = 600.0
CULPRIT_PATIENCE_S = 60.0


class Supervisor:
    """Sees every event once (`notice`), and looks after the run between them (`look`)."""

    def __init__(
        self, config: Config, run: Store, recorder: Any, data: Frozen, lease: Lease, started_s: float, waiting: Waiting
    ) -> None:
        self.config, self.run, self.recorder, self.lease = config, run, recorder, lease
        self.order = Curriculum(data.segments, config.slot_blocks_per_step)
        self.goodput = Goodput.resume(started_s, read_json(run, GOODPUT))
        self.starts = Starts(run, read_json(run, STARTS), started_s)
        self._given_up = False
        self.timeout_s = config.train.stall_timeout_s
        self._looked_s = time.monotonic()
        self.copies = Copies(config, run, recorder.record.remote)
        self.culprits = Culprits(run, data, config.slot_blocks_per_step, recorder.record.remote)
        self.lead = Lead(data, config.slot_blocks_per_step, recorder.record.remote)
        self.health = Health(None if config.init.uri else math.log(data.vocab_size))
        self.forgetting = Forgetting(config, run, data.held_out)
        self.gauges, self.waiting = Gauges(config.run.name), waiting

    def notice(self, event: dict[str, Any]) -> None:
        """Count an event: starts of worker groups and goodput stay in the run folder, over all starts of the run."""
        self.goodput.add(event)
        self.gauges.notice(event)
        self.copies.notice(event)
        self.culprits.notice(event)
        self.lead.notice(event)
        self.starts.notice(event)
        self.waiting.notice(event)
        for told in [*self.health.notice(event), *self.forgetting.notice(event)]:
            self.recorder.record.remote(told)
        if event["kind"] == "checkpoint":
            self._keep_goodput(event["step"])

    def look(self, events: Sequence[dict[str, Any]]) -> None:
        """Raise LeaseError if the run is another driver's; end a run that fails in a circle; free one that hangs."""
        self.lease.check()
        for told in self.waiting.look(time.time()):
            self.recorder.record.remote(told)
        failures = failures_in_a_row(events)
        if len(failures) > self.config.train.max_failures and not self._given_up:
            self._given_up = True
            self.recorder.fatal.remote(_gave_up(failures), 1)
        period_s = pulse_period_s(self.timeout_s)
        if self.timeout_s and time.monotonic() - self._looked_s >= period_s and events and not _ended(events):
            self._looked_s = time.monotonic()
            self._watch(period_s)

    def _watch(self, period_s: float) -> None:
        pulses: list[Pulse] = ray.get(self.recorder.pulses.remote())
        names = [source.name for source in self.config.data.sources]
        found = diagnose(pulses, self.timeout_s, period_s, self.order, names)
        if found is None:
            return
        event = {"kind": "stall", "diagnosis": found.kind, "message": found.text, "ranks": list(found.ranks)}
        self.recorder.record.remote(event)
        kill([p for p in pulses if p.rank in found.ranks] or pulses)
        self.recorder.forget_pulses.remote()

    def close(self, tokens: int, step: int) -> dict[str, Any]:
        """Goodput of the whole run, at its end; kept, and sent to the tracker."""
        self.drain()
        if not self.culprits.drain(CULPRIT_PATIENCE_S):
            log.warning("the documents of a spike were not named within %.0f s", CULPRIT_PATIENCE_S)
        self.goodput.close(time.time())
        self.run.write(GOODPUT, json.dumps(self.goodput.saved()).encode())
        report = self.goodput.report(tokens)
        ray.get(self.recorder.record.remote({"kind": "goodput", "step": step, "is_last": True, **report}))
        return report

    def drain(self) -> None:
        """Wait for the copies of checkpoints that are asked for."""
        if not self.copies.drain(COPY_PATIENCE_S):
            log.warning("the copies of checkpoints were not done within %.0f s", COPY_PATIENCE_S)

    def _keep_goodput(self, step: int) -> None:
        self.run.write(GOODPUT, json.dumps(self.goodput.saved()).encode())
        report = self.goodput.report(step * self.config.train.global_batch_tokens)
        self.recorder.record.remote({"kind": "goodput", "step": step, "is_last": False, **report})


def _ended(events: Sequence[dict[str, Any]]) -> bool:
    """Whether no worker group is at work: none has started since a segment's end, or the run is given up."""
    last = next((event["kind"] for event in reversed(events) if event["kind"] in ("start", "finish")), None)
    return last == "finish" or any(event["kind"] == "fatal" for event in events)


def _gave_up(failures: list[dict[str, Any]]) -> str:
    return (
        f"the workers failed {len(failures)} times without a new checkpoint, so the run gives up; the last failure was "
        f"{failures[-1]['message']}. Mend its cause and give the same command again: it continues from the last "
        "checkpoint (train.max_failures allows more failures)"
    )


def kill(pulses: Sequence[Pulse]) -> None:
    """SIGKILL these ranks from their own nodes: a stopped process hears neither Ray's requests nor SIGTERM.

    Ray Train sees dead workers and restarts the group. A node that does not answer is Ray's to declare dead.
    """
    task: Any = ray.remote(_kill_worker)
    sent = [
        task.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(p.node, soft=False)
        ).remote(p.pid)
        for p in pulses
    ]
    _done, waiting = ray.wait(sent, num_returns=len(sent), timeout=KILL_PATIENCE_S)
    for ref in waiting:
        ray.cancel(ref)


def _kill_worker(pid: int) -> bool:
    """Whether there was such a worker of Ray: the number may belong to another process by now."""
    try:
        if b"ray::" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False
        os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True
