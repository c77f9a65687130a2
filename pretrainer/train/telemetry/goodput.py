"""Where the worker-seconds of a run went: a fold over the recorder's events, each second counted in one category.

Goodput is the share of (wall time x workers) in which steps were trained that had not been trained before ("ML
Productivity Goodput", Google, 2024; departure: waiting for data is shown apart from the step). Every event that rank 0
sends carries its seconds by phase since its last one, and the recorder stamps it with one clock (`at_s`); the time
between two stamps is shared out in proportion to those phases. The time in which no driver lives is in no category.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

CATEGORIES = ("useful", "start_up", "data_wait", "checkpoint", "validation", "lost_work", "recovery", "other")
OF_PHASE = {
    "data": "data_wait",
    "agree": "data_wait",
    "step": "useful",
    "validate": "validation",
    "resize": "recovery",
    "sample": "validation",
    "evaluate": "validation",
    "checkpoint": "checkpoint",
}


@dataclass
class Goodput:
    """Sums over all drivers of a run, and where the current one stands.

    worker_s: worker-seconds by category. trained_step: steps below it were trained before. at_s: everything up to
    this time is counted. way: "start_up" or "recovery" until the first step of a start, then "".
    """

    at_s: float
    worker_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0.0))
    trained_step: int = 0
    step: int = 0
    world: int = 1
    way: str = "start_up"
    stalled: bool = False

    @classmethod
    def resume(cls, at_s: float, saved: dict[str, Any] | None) -> Goodput:
        """A new driver's, at `at_s`, on top of what `saved()` of the last one said."""
        if saved is None:
            return cls(at_s)
        sums = {name: float(saved["worker_s"].get(name, 0.0)) for name in CATEGORIES}
        return cls(at_s, sums, saved["trained_step"], world=saved["world"])

    def saved(self) -> dict[str, Any]:
        return asdict(self)

    def add(self, event: dict[str, Any]) -> None:
        """Count the time up to an event; events without a stamp are not the recorder's."""
        if "at_s" not in event:
            return
        if event["kind"] == "start":
            self.world, self.step = event["world_size"], event["step"]
            self._spend(event["at_s"], {self.way or "recovery": 1.0})
            self.way, self.stalled = self.way or "recovery", False
        elif event["kind"] in ("failure", "stall"):
            # what was trained since the last event is gone; what a stall took is time to recover from it
            self._spend(event["at_s"], {"recovery" if self.stalled or event["kind"] == "stall" else "lost_work": 1.0})
            self.way, self.stalled = "recovery", True
        elif event["kind"] == "healing" and "phase_s" in event:
            self._progress({**event, "step": self.step})
            self.step = event["to_step"] if event["to_step"] >= 0 else self.step  # what comes is trained again
        elif event["kind"] == "rewind":
            self.way, self.stalled = "recovery", True
        elif event["kind"] == "finish":
            self.close(event["at_s"])
            self.way = "start_up"  # of the next segment, if there is one
        elif "phase_s" in event:
            self._progress(event)

    def _progress(self, event: dict[str, Any]) -> None:
        before, self.step = self.step, max(self.step, event["step"])
        fresh = self.step - max(before, min(self.step, self.trained_step))
        new_share = fresh / (self.step - before) if self.step > before else 0.0
        parts = dict.fromkeys(CATEGORIES, 0.0)
        for phase, seconds in event["phase_s"].items():
            category = OF_PHASE.get(phase, self.way or "other")
            category = self.way if self.way and category == "data_wait" else category
            if category == "useful":
                parts["lost_work"] += seconds * (1 - new_share) if self.step > before else 0.0
                parts["useful"] += seconds * new_share
                parts[self.way or "other"] += 0.0 if self.step > before else seconds
            else:
                parts[category] += seconds
        self._spend(event["at_s"], parts)
        self.trained_step = max(self.trained_step, self.step)
        self.way = "" if self.step > before else self.way

    def close(self, at_s: float) -> None:
        """The driver ends here: export and summary are `other`, and so is a run that never started."""
        self._spend(at_s, {self.way or "other": 1.0})

    def _spend(self, at_s: float, parts: dict[str, float]) -> None:
        gap_s, whole = max(0.0, at_s - self.at_s), sum(parts.values())
        for name, part in parts.items():
            self.worker_s[name] += gap_s * self.world * (part / whole if whole else 0.0)
        if not whole:
            self.worker_s["other"] += gap_s * self.world
        self.at_s = max(self.at_s, at_s)

    def report(self, tokens: int) -> dict[str, Any]:
        """fraction (0 to 1), share by category (they add up to 1), worker_s, and useful tokens per worker-second."""
        whole = sum(self.worker_s.values())
        share = {name: seconds / whole if whole else 0.0 for name, seconds in self.worker_s.items()}
        rate = tokens / whole if whole else 0.0
        return {"fraction": share["useful"], "share": share, "worker_s": whole, "tokens_per_worker_s": rate}


def fold(at_s: float, events: Iterable[dict[str, Any]]) -> Goodput:
    """Goodput of one driver that began at `at_s`."""
    goodput = Goodput(at_s)
    for event in events:
        goodput.add(event)
    return goodput


def start_split(since_s: float, start: dict[str, Any], first: dict[str, Any]) -> dict[str, float]:
    """Seconds from `since_s` (the driver's start, or when the last group ended) to the first step's end, by what they
    went to.

    scheduling ends when the worker's process is there, import when its loop begins, load when weights are restored;
    first_batch is the wait for data, first_step the first forward and backward pass with all that compiles in it.
    """
    whole = max(0.0, first["at_s"] - since_s)
    before = max(0.0, start["at_s"] - since_s)
    load = min(start["phase_s"].get("load", 0.0), before)
    imports = min(start["import_s"], before - load)
    batch = first["phase_s"].get("data", 0.0) + first["phase_s"].get("agree", 0.0)
    step = first["phase_s"].get("step", 0.0)
    parts = {"scheduling": before - load - imports, "import": imports, "load": load, "first_batch": batch}
    return {**parts, "first_step": step, "other": max(0.0, whole - before - batch - step), "total": whole}
