"""A run's events as curves over its steps and as marks on them: what was trained in the end, and what happened.

Steps that were trained again (after a restart, or a rollback) count as they were trained last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pretrainer.report.facts import Facts, Plain

Points = list[tuple[float, float]]


class Mark(NamedTuple):
    """Something that happened; step counts finished steps, at_s is Unix time where it is known."""

    step: int
    kind: str  # of KINDS
    words: str
    at_s: float | None = None


KINDS = {
    "spike": "spike",
    "heal": "spike, and something was done",
    "failure": "workers failed or were killed",
    "stall": "workers stood still",
    "preempted": "a node was taken away",
    "resize": "another number of workers",
    "driver": "the run was started again",
    "warning": "warning",
}


@dataclass
class Story:
    intervals: list[Plain] = field(default_factory=list)  # events "steps", by step
    marks: list[Mark] = field(default_factory=list)
    checkpoints: list[Plain] = field(default_factory=list)
    validations: dict[int, Plain] = field(default_factory=dict)  # step -> sources
    leads: list[Plain] = field(default_factory=list)
    looks: list[Plain] = field(default_factory=list)
    profiles: list[Plain] = field(default_factory=list)
    worlds: list[tuple[int, int, int]] = field(default_factory=list)  # (first step, last step, workers)

    @property
    def last_step(self) -> int:
        return max([0, *(one["step"] for one in self.intervals), *self.validations, *(e for _b, e, _w in self.worlds)])

    def curve(self, name: str) -> Points:
        """(step, value) of every interval that has a number of this name."""
        return [(one["step"], one[name]) for one in self.intervals if is_number(one.get(name))]

    def source_losses(self) -> dict[str, Points]:
        return _by_name((one["step"], one.get("source_losses") or {}) for one in self.intervals)

    def held_out(self, metric: str) -> dict[str, Points]:
        """By source, a metric of the validations."""
        return _by_name(
            (step, {name: values.get(metric) for name, values in sources.items()})
            for step, sources in sorted(self.validations.items())
        )


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _by_name(rows: Iterable[tuple[float, Plain]]) -> dict[str, Points]:
    out: dict[str, Points] = {}
    for step, values in rows:
        for name, value in values.items():
            if is_number(value):
                out.setdefault(name, []).append((step, value))
    return out


def tell(facts: Facts) -> Story:
    """Fold the events of a run."""
    story, before = Story(), _Before()
    for event in facts.events:
        teller = TELLERS.get(event["kind"])
        if teller is not None:
            teller(story, event, before)
    story.marks += [_healed(heal) for heal in facts.heals]
    story.marks.sort(key=lambda mark: (mark.step, mark.at_s or 0.0))
    story.worlds = worlds(facts.attempts, max(story.last_step, facts.steps))
    return story


@dataclass
class _Before:
    """What the fold remembers."""

    world: int | None = None
    is_new_driver: bool = False


def _start(story: Story, event: Plain, before: _Before) -> None:
    step, world = event["step"], event["world_size"]
    _forget(story, step)
    if before.is_new_driver and before.world is not None:
        story.marks.append(Mark(step, "driver", f"a new driver went on at step {step:,}", event.get("at_s")))
    if before.world not in (None, world):
        words = f"{world} worker{'s' * (world != 1)} instead of {before.world} from step {step:,} on"
        story.marks.append(Mark(step, "resize", words, event.get("at_s")))
    before.world, before.is_new_driver = world, False


def _forget(story: Story, step: int) -> None:
    """Training goes on from this step: what comes after it is trained again."""
    for known in (story.intervals, story.leads, story.looks, story.profiles):
        known[:] = [one for one in known if one["step"] <= step]


def _steps(story: Story, event: Plain, before: _Before) -> None:
    story.intervals.append(event)


def _healing(story: Story, event: Plain, before: _Before) -> None:
    if event.get("to_step", -1) >= 0:
        _forget(story, event["to_step"])


def _driver(story: Story, event: Plain, before: _Before) -> None:
    before.is_new_driver = True


def _validation(story: Story, event: Plain, before: _Before) -> None:
    story.validations[event["step"]] = event["sources"]


def _checkpoint(story: Story, event: Plain, before: _Before) -> None:
    story.checkpoints = [one for one in story.checkpoints if one["step"] != event["step"]] + [event]


def _mark(kind: str) -> Any:
    def teller(story: Story, event: Plain, before: _Before) -> None:
        step = event.get("step", story.last_step)
        story.marks.append(Mark(step, kind, event.get("message") or KINDS[kind], event.get("at_s")))

    return teller


def _failure(story: Story, event: Plain, before: _Before) -> None:
    """A preemption ends the workers too, and has told so itself."""
    if event.get("reason") != "preempted":
        ranks = ", ".join(map(str, event.get("ranks") or ()))
        words = f"{f'rank {ranks}: ' if ranks else ''}{event['message']}"
        story.marks.append(Mark(story.last_step, "failure", words, event.get("at_s")))


def _preempted(story: Story, event: Plain, before: _Before) -> None:
    left = event.get("seconds_left")
    words = f"a node was taken away{'' if left is None else f' in {left:.0f} s'}; the step was saved before"
    story.marks.append(Mark(event["step"], "preempted", words, event.get("at_s")))


TELLERS: dict[str, Any] = {
    "driver": _driver,
    "start": _start,
    "steps": _steps,
    "healing": _healing,
    "validation": _validation,
    "checkpoint": _checkpoint,
    "failure": _failure,
    "preempted": _preempted,
    "stall": _mark("stall"),
    "warning": _mark("warning"),
    "evaluation_failed": _mark("warning"),
    "copy_failed": _mark("warning"),
    "fatal": _mark("failure"),
    "lead": lambda story, event, before: story.leads.append(event),
    "look": lambda story, event, before: story.looks.append(event),
    "profile": lambda story, event, before: story.profiles.append(event),
}
"""What each kind of event adds to the story; all others are for the console."""


def _healed(heal: Plain) -> Mark:
    kind = "spike" if heal["policy"] == "report" else "heal"
    return Mark(heal["step"] + 1, kind, f"{heal['message']}; {heal['action']}", heal.get("time_s"))


def worlds(attempts: Sequence[Plain], last_step: int) -> list[tuple[int, int, int]]:
    """(first step, last step, workers) of the stretches of steps as they were trained last."""
    stretches: list[tuple[int, int, int]] = []
    for number, attempt in enumerate(attempts):
        later = [other["step"] for other in attempts[number + 1 :]]
        first, end = attempt["step"], min([last_step, *later])
        if first >= end:
            continue
        if stretches and stretches[-1][2] == attempt["world_size"]:
            first = stretches.pop()[0]
        stretches.append((first, end, attempt["world_size"]))
    return stretches


def thin(points: Points, most: int = 500) -> Points:
    """Means of equal stretches of the points, where there are more than `most`; the last one stays as it is."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    parts = [points[at : at + size] for at in range(0, len(points) - 1, size)]
    means = [(part[-1][0], sum(value for _x, value in part) / len(part)) for part in parts]
    return [*(point for point in means if point[0] < points[-1][0]), points[-1]]


def smooth(points: Points, share: float = 0.02) -> Points:
    """A trailing mean over this share of the points."""
    width, out, total = max(1, round(share * len(points))), [], 0.0
    for number, (x, value) in enumerate(points):
        total += value - (points[number - width][1] if number >= width else 0.0)
        out.append((x, total / min(number + 1, width)))
    return out
