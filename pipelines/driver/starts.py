"""What each start of a worker group took, over all starts of the run; starts.json in the run folder."""

from __future__ import annotations

import json
from typing import Any

from pretrainer.storage import Store
from pretrainer.train.telemetry.goodput import start_split

STARTS = "starts.json"
WORK = ("steps", "checkpoint", "failure")  # after the last of these nothing was done until the next group began


class Starts:
    """The list grows with every start of a group and gets its seconds with the group's first step."""

    def __init__(self, run: Store, known: list[dict[str, Any]] | None, driver_started_s: float) -> None:
        self.run, self.all = run, known or []
        self.worked_s = driver_started_s
        self.begun: dict[str, Any] | None = None  # the start that has trained no step yet

    def notice(self, event: dict[str, Any]) -> None:
        if event["kind"] == "start":
            self.begun = event
            self.all.append({k: event[k] for k in ("step", "segment", "world_size", "time_s")})
            self._keep()
        elif event["kind"] == "steps" and self.begun is not None:
            self.all[-1]["seconds"] = start_split(self.worked_s, self.begun, event)
            self.begun = None
            self._keep()
        if event["kind"] in WORK:
            self.worked_s = event["at_s"]

    def _keep(self) -> None:
        self.run.write(STARTS, json.dumps(self.all).encode())
