"""The one place where a run's events end up: a plain class that pipelines run as an actor on the driver's node.

It outlives worker groups, so a step that is replayed after a restart is counted and tracked once.
"""

from __future__ import annotations

from typing import Any

from pretrainer.tracking import Tracker


class Recorder:
    """Collects events from rank 0, forwards metrics to the tracker, keeps what the summary needs."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.events: list[dict[str, Any]] = []
        self.logged_step = 0
        self.stop = False
        self.sums = {"data_wait_s": 0.0, "elapsed_s": 0.0, "tokens": 0.0}

    def start(self) -> str:
        """Open the tracker's run; returns its id."""
        return self.tracker.start()

    def record(self, event: dict[str, Any]) -> bool:
        """Take one event; the answer says whether the run is asked to stop."""
        if event["kind"] == "steps":
            event = self._new_steps(event)
        self.events.append(event)
        self.tracker.log_event(event)
        return self.stop

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

    def finish(self, status: str, artifacts: dict[str, str]) -> None:
        """Close the tracker's run: `artifacts` are name -> text."""
        self.tracker.finish(status, artifacts)
