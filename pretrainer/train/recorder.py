"""The one place where a run's events end up: a plain class that pipelines run as an actor on the driver's node.

It outlives worker groups, so a step that is replayed after a restart is counted and tracked once.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from pretrainer.errors import TrackingError
from pretrainer.tracking import Tracker

log = logging.getLogger(__name__)

FINISH_PATIENCE_S = 120.0
RETRY_S = 5.0


class Recorder:
    """Collects events from rank 0, forwards metrics to the tracker, keeps what the summary needs."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.events: list[dict[str, Any]] = []
        self.logged_step = 0  # newest step whose metrics were tracked, before a restart of the driver too
        self.validated_step = -1
        self.unsent: list[dict[str, Any]] = []  # events that the tracking server has not got yet
        self.stop = False
        self.sums = {"data_wait_s": 0.0, "elapsed_s": 0.0, "tokens": 0.0}

    def start(self) -> str:
        """Open the tracker's run; returns its id."""
        run_id = self.tracker.start()
        self.logged_step, self.validated_step = self.tracker.last_steps()
        return run_id

    def record(self, event: dict[str, Any]) -> bool:
        """Take one event; the answer says whether the run is asked to stop."""
        if event["kind"] == "steps":
            event = self._new_steps(event)
        self.events.append(event)
        if event["kind"] != "validation" or event["step"] > self.validated_step:
            self.unsent.append(event)
        if event["kind"] == "validation":
            self.validated_step = max(self.validated_step, event["step"])
        self._send()
        return self.stop

    def _send(self) -> None:
        """Give the tracker what it has not got; while it does not answer, training goes on and nothing is lost."""
        try:
            while self.unsent:
                self.tracker.log_event(self.unsent[0])
                self.unsent.pop(0)
        except TrackingError as error:
            log.warning("%s; %d events wait", error, len(self.unsent))

    def _new_steps(self, event: dict[str, Any]) -> dict[str, Any]:
        fresh = [step for step in event["steps"] if step["step"] > self.logged_step]
        if fresh:
            self.logged_step = fresh[-1]["step"]
        self.sums["data_wait_s"] += event["data_wait_s"]
        self.sums["elapsed_s"] += event["elapsed_s"]
        self.sums["tokens"] += event["tokens_per_s"] * event["elapsed_s"]
        return {**event, "steps": fresh}

    def fatal(self, message: str, exit_code: int) -> None:
        """An error that no restart can mend; the driver ends the run with it."""
        self.events.append({"kind": "fatal", "message": message, "exit_code": exit_code})

    def request_stop(self) -> None:
        """Ask the workers to checkpoint and end after the current step."""
        self.stop = True

    def events_from(self, first: int) -> list[dict[str, Any]]:
        return self.events[first:]

    def totals(self) -> dict[str, float]:
        """Sums over all logged intervals: data_wait_s, elapsed_s, tokens."""
        return self.sums

    def finish(self, status: str, artifacts: dict[str, str | bytes]) -> None:
        """Close the tracker's run: `artifacts` are name -> text. Raises TrackingError if it stays out of reach."""
        deadline = time.monotonic() + FINISH_PATIENCE_S
        while True:
            self._send()
            try:
                return self.tracker.finish(status, artifacts)
            except TrackingError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)
