"""What the driver tells Prometheus: the run as a whole, over restarts of its workers, set from the events it gets.

A gauge of a rank (pretrainer/train/reporter.py) ends with its worker group; these stay while the driver
lives, so an alert about them can tell a run that stands still from one that has no workers. Prometheus sees
`ray_pretrainer_<name>`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ray.util.metrics import Gauge

from pretrainer.train.telemetry.goodput import OF_PHASE

GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "run_step": ("Optimizer step that the run stands at", ()),
    "run_tokens": ("Tokens trained", ()),
    "world_size": ("Workers of the group that trains; 0 while there is none", ()),
    "happenings": ("What has happened how often since this driver began", ("what",)),
    "rank0_seconds": ("Seconds of rank 0 by phase: data and agree are waits for data", ("phase",)),
    "goodput_share": ("Share of the workers' time by category, over the whole run", ("category",)),
    "val_loss": ("Held-out loss, nats per token", ("source",)),
    "source_loss": ("Training loss by source, nats per token", ("source",)),
    "checkpoint_step": ("Step of the newest committed checkpoint", ()),
    "checkpoint_unix_s": ("When it was committed; before the first, when this driver saw its first event", ()),
    "checkpoint_blocking_s": ("Seconds that training waited for it", ()),
    "checkpoint_total_s": ("Seconds from its snapshot to its commit", ()),
    "lead_steps": ("Steps that are curated and packed and not trained yet", ()),
    "curated_share": ("Share of a source that is curated, 0 to 1", ("source",)),
}
"""Name -> (text, labels beside `run`)."""

HAPPENINGS = {
    "start": "worker_group",
    "failure": "failure",
    "preempted": "preemption",
    "stall": "stall",
    "healing": "spike",
    "warning": "warning",
    "copy_failed": "warning",
    "evaluation_failed": "warning",
    "damaged": "damaged_checkpoint",
    "fatal": "fatal",
}
"""Kind of event -> the `what` that it counts for."""
PLANNED = "planned_restart"
"""What a failure counts for that is nobody's fault: a resize, a node that was taken away."""


class Reading(NamedTuple):
    """A value of a gauge, with its labels beside `run`."""

    name: str
    value: float
    labels: dict[str, str] = {}


def _steps(event: dict[str, Any]) -> Iterator[Reading]:
    yield Reading("run_step", event["step"])
    yield Reading("run_tokens", event["tokens"])
    yield Reading("world_size", event["world_size"])
    yield from (Reading("source_loss", loss, {"source": name}) for name, loss in event["source_losses"].items())


def _checkpoint(event: dict[str, Any]) -> Iterator[Reading]:
    yield Reading("checkpoint_step", event["step"])
    yield Reading("checkpoint_unix_s", event["at_s"])
    yield Reading("checkpoint_blocking_s", event["blocking_s"])
    yield Reading("checkpoint_total_s", event["total_s"])


def _validation(event: dict[str, Any]) -> Iterator[Reading]:
    yield from (Reading("val_loss", one["loss"], {"source": name}) for name, one in event["sources"].items())


def _goodput(event: dict[str, Any]) -> Iterator[Reading]:
    yield from (Reading("goodput_share", share, {"category": name}) for name, share in event["share"].items())


def _lead(event: dict[str, Any]) -> Iterator[Reading]:
    yield Reading("lead_steps", event["steps_ahead"])
    yield from (Reading("curated_share", share, {"source": name}) for name, share in event["curated"].items())


def _start(event: dict[str, Any]) -> Iterator[Reading]:
    yield Reading("run_step", event["step"])
    yield Reading("world_size", event["world_size"])


def _no_workers(_event: dict[str, Any]) -> Iterator[Reading]:
    yield Reading("world_size", 0)


READERS: dict[str, Callable[[dict[str, Any]], Iterator[Reading]]] = {
    "steps": _steps,
    "checkpoint": _checkpoint,
    "validation": _validation,
    "goodput": _goodput,
    "lead": _lead,
    "start": _start,
    "failure": _no_workers,
    "finish": _no_workers,
}
"""Kind of event -> what it says; a kind that is not here says nothing but that it happened."""


class Readings:
    """What the events of one driver say; pure, without Ray."""

    def __init__(self) -> None:
        self.happened = Counter(dict.fromkeys((*HAPPENINGS.values(), PLANNED), 0))
        self.phase_s = Counter(dict.fromkeys(OF_PHASE, 0.0))
        self.begun = False

    def of(self, event: dict[str, Any]) -> Iterator[Reading]:
        """New values, in the order in which they hold."""
        if not self.begun and "at_s" in event:
            self.begun = True
            yield Reading("checkpoint_unix_s", event["at_s"])
            yield from (Reading("happenings", 0, {"what": what}) for what in self.happened)
        if event["kind"] in HAPPENINGS:
            what = PLANNED if event["kind"] == "failure" and event["reason"] else HAPPENINGS[event["kind"]]
            self.happened[what] += 1
            yield Reading("happenings", self.happened[what], {"what": what})
        for phase, seconds in event.get("phase_s", {}).items():
            self.phase_s[phase] += seconds
            yield Reading("rank0_seconds", self.phase_s[phase], {"phase": phase})
        yield from READERS.get(event["kind"], lambda _event: iter(()))(event)


class Gauges:
    """The driver's gauges of one run."""

    def __init__(self, run: str) -> None:
        self.run, self.readings = run, Readings()
        self.gauges = {
            name: Gauge(f"pretrainer_{name}", text, tag_keys=("run", *labels))
            for name, (text, labels) in GAUGES.items()
        }

    def notice(self, event: dict[str, Any]) -> None:
        """Set what an event of the recorder says."""
        for reading in self.readings.of(event):
            self.gauges[reading.name].set(float(reading.value), {"run": self.run, **reading.labels})
