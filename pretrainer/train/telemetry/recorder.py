"""The one place where a run's events end up: a plain class that pipelines run as an actor on the driver's node.

It outlives worker groups, so a step that is replayed after a restart is counted and tracked once. No method but
`prepare`, `start` and `finish` waits for the tracking server. Every event is stamped with this process's clock: `at_s`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from pretrainer.errors import TrackingError
from pretrainer.journal import Journal
from pretrainer.tracking import Tracker
from pretrainer.train.telemetry.outbox import RETRY_S, Outbox
from pretrainer.train.telemetry.watchdog import Pulse

log = logging.getLogger(__name__)

FINISH_PATIENCE_S = 120.0


class Recorder:
    """Collects events from rank 0, forwards metrics to the tracker, keeps what the summary needs."""

    def __init__(self, tracker: Tracker, journal: Journal | None = None) -> None:
        self.tracker, self.journal = tracker, journal
        self.events: list[dict[str, Any]] = []
        self.logged_step = 0  # newest step whose metrics were tracked, before a restart of the driver too
        self.measured = {"validation": -1, "evaluation": -1}  # kind -> newest step that was tracked
        self.outbox = Outbox(lambda event: self.tracker.log_event(event))
        self.heard: dict[int, dict[str, Any]] = {}  # by rank: its last pulse, when it came, when its phase changed
        self.handle: Any = None
        self.stop = False
        self.checkpoint_wanted = False
        self.begun, self.held = "", set[str]()  # actor ids: rank 0 of the group that trains, and a group that may not
        self.sums = {"data_wait_s": 0.0, "elapsed_s": 0.0, "tokens": 0.0}

    def prepare(self) -> None:
        """What `start` would begin with, for a driver that has other things to do before it."""
        self.tracker.prepare()

    def start(self, tags: Mapping[str, str] | None = None) -> str:
        """Open the tracker's run, with more tags; returns its id."""
        run_id = self.tracker.start(tags)
        known = self.tracker.last_steps()
        self.logged_step = max(0, known["train"])
        self.measured = {kind: known[kind] for kind in self.measured}
        return run_id

    def record(self, event: dict[str, Any]) -> dict[str, bool]:
        """Take one event; the answer says whether the run is asked to stop, or to save a checkpoint now."""
        told = {**event, "at_s": time.time()}
        self._note(told)
        event = self._new_steps(told) if event["kind"] == "steps" else told
        self.events.append(event)
        last_step = self.measured.get(event["kind"])
        if last_step is None or event["step"] > last_step:
            self.outbox.put(event)
        if last_step is not None:
            self.measured[event["kind"]] = max(last_step, event["step"])
        if event.get("asked"):  # one that was begun before is not what was asked for
            self.checkpoint_wanted = False
        return {"stop": self.stop, "checkpoint": self.checkpoint_wanted}

    def pulse(self, said: dict[str, Any]) -> None:
        """What a rank is doing (phases.Phases); the pulses of another world size are those of a group that ended."""
        now_s, last = time.monotonic(), self.heard.get(said["rank"])
        self.heard = {r: p for r, p in self.heard.items() if p["world"] == said["world"]}
        is_same = last is not None and (last["pid"], last["changes"]) == (said["pid"], said["changes"])
        changed_s = last["changed_s"] if last is not None and is_same else now_s
        self.heard[said["rank"]] = {**said, "heard_s": now_s, "changed_s": changed_s}

    def pulses(self) -> list[Pulse]:
        """The last pulse of each rank, with its age."""
        now_s = time.monotonic()
        return [_aged(pulse, now_s) for _rank, pulse in sorted(self.heard.items())]

    def forget_pulses(self) -> None:
        """The worker group was killed: its silence says nothing about the next one."""
        self.heard = {}

    def _new_steps(self, event: dict[str, Any]) -> dict[str, Any]:
        fresh = [step for step in event["steps"] if step["step"] > self.logged_step]
        if fresh:
            self.logged_step = fresh[-1]["step"]
        if not event["is_first"]:  # of a start: it waited for the stream to begin, which is start-up time
            self.sums["data_wait_s"] += event["data_wait_s"]
            self.sums["elapsed_s"] += event["elapsed_s"]
            self.sums["tokens"] += event["tokens_per_s"] * event["elapsed_s"]
        return {**event, "steps": fresh}

    def _note(self, event: dict[str, Any]) -> None:
        if self.journal is not None:
            self.journal.put(event)

    def keep_controller(self, handle: Any) -> None:
        """Of Ray Train's controller, for `controller`."""
        self.handle = handle

    def controller(self) -> Any:
        """The handle of the newest controller; None before the first."""
        return self.handle

    def fatal(self, message: str, exit_code: int) -> None:
        """An error that no restart can mend; the driver ends the run with it."""
        self.events.append({"kind": "fatal", "message": message, "exit_code": exit_code})
        self._note({**self.events[-1], "at_s": time.time()})

    def warn(self, name: str, message: str) -> None:
        """Of someone who knows no step: the newest one that is known is told."""
        self.record({"kind": "warning", "name": name, "step": self.logged_step, "message": message})

    def request_stop(self) -> None:
        """Ask the workers to checkpoint and end after the current step."""
        self.stop = True

    def request_checkpoint(self) -> None:
        """Ask the workers for a checkpoint after the current step, or the first if none is trained yet: the cluster has
        grown."""
        self.checkpoint_wanted = True

    def forget_checkpoint(self) -> None:
        """The workers that were asked have ended, or end now; the next ones would wait for a growth that is past."""
        self.checkpoint_wanted = False

    def hold(self, workers: list[str]) -> bool:
        """The group of these actors is ended for a larger one, unless it has begun its first step; whether it has not,
        and now waits."""
        if self.begun in workers:
            return False
        self.held = set(workers)
        return True

    def begin(self, worker: str) -> bool:
        """Rank 0 of a group has its first batch: whether the group may train, or is about to be ended."""
        self.begun = worker
        return worker not in self.held

    def flush(self, timeout_s: float) -> int:
        """Wait until the tracker has everything; returns how many events it still has not got."""
        return self.outbox.drain(timeout_s)

    def keep_events(self, timeout_s: float) -> bool:
        """Wait until the run folder has every event; whether it has."""
        return self.journal is None or self.journal.flush(timeout_s)

    def events_from(self, first: int) -> list[dict[str, Any]]:
        return self.events[first:]

    def totals(self) -> dict[str, float]:
        """Sums over all logged intervals: data_wait_s, elapsed_s, tokens."""
        return self.sums

    def finish(self, status: str, artifacts: dict[str, str | bytes]) -> None:
        """Close the tracker's run: `artifacts` are name -> text. Raises TrackingError if it stays out of reach."""
        deadline = time.monotonic() + FINISH_PATIENCE_S
        left = self.outbox.drain(FINISH_PATIENCE_S)
        if left:
            raise TrackingError(f"MLflow has not taken the last {left} events of the run")
        while True:
            try:
                return self.tracker.finish(status, artifacts)
            except TrackingError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)


def _aged(pulse: dict[str, Any], now_s: float) -> Pulse:
    known = {name: pulse[name] for name in ("rank", "world", "pid", "node", "phase", "step", "block", "begun")}
    return Pulse(**known, silent_s=now_s - pulse["heard_s"], unchanged_s=now_s - pulse["changed_s"])
