"""Why nothing moves: a pure function of what the ranks last said, and the count of failures that got nowhere.

Ray's health check asks an actor's main thread and the training loop is another thread, so a stuck collective, a
starved stream or a stopped process is not noticed by Ray (2.60) for ten minutes or ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pretrainer.schema import SlotOrder

START_PATIENCE = 5  # times the timeout until the first step is done: imports, compilation, a stream that begins
SILENT_PULSES = 3  # a rank that missed so many pulses, and at least one second, reports nothing


@dataclass(frozen=True)
class Pulse:
    """What a rank said last; ages are by the clock of the one who listens."""

    rank: int
    world: int
    pid: int
    node: str
    phase: str
    step: int
    block: int | None
    silent_s: float
    unchanged_s: float
    begun: bool = True  # it has finished a step since its group started


@dataclass(frozen=True)
class Diagnosis:
    """kind: "rank" (says nothing), "data" (waits for a slot block) or "collective" (ranks wait for each other)."""

    kind: str
    text: str
    ranks: tuple[int, ...]


def diagnose(
    pulses: Sequence[Pulse], stall_timeout_s: float, period_s: float, order: SlotOrder, sources: Sequence[str]
) -> Diagnosis | None:
    """What holds the run up, or None while any rank moved within `stall_timeout_s` (0: never).

    Before the first step of a start it may take START_PATIENCE times as long.

    A silent process explains more than a starved one, and a starved rank more than those that wait for it.
    """
    patience = 1 if all(p.begun for p in pulses) else START_PATIENCE
    if not pulses or not stall_timeout_s or min(p.unchanged_s for p in pulses) < patience * stall_timeout_s:
        return None
    still = f"nothing has moved for {min(p.unchanged_s for p in pulses):.0f} s: "
    known, world = {p.rank: p for p in pulses}, pulses[0].world
    limit_s = max(1.0, SILENT_PULSES * period_s)
    silent = tuple(r for r in range(world) if r not in known or known[r].silent_s > limit_s)
    if silent:
        return Diagnosis("rank", still + "; ".join(_silence(r, known.get(r), world) for r in silent), silent)
    hungry = sorted((p for p in pulses if p.phase == "data"), key=lambda p: (p.block or 0, p.rank))
    if hungry:
        return Diagnosis("data", still + _hunger(hungry, world, order, sources), tuple(p.rank for p in hungry))
    return _collective(pulses, still)


def _silence(rank: int, last: Pulse | None, world: int) -> str:
    if last is None:
        return f"rank {rank} of {world} has never reported"
    return (
        f"rank {rank} of {world} (process {last.pid}) has reported nothing for {last.silent_s:.0f} s, "
        f"last in {last.phase} of step {last.step}"
    )


def _hunger(hungry: list[Pulse], world: int, order: SlotOrder, sources: Sequence[str]) -> str:
    waits = [f"rank {p.rank} of {world} waits for slot block {p.block}" for p in hungry]
    first = hungry[0].block
    if first is None:
        return ", ".join(f"rank {p.rank} of {world} waits for the stream" for p in hungry)
    source, nth = order.expected(first)
    return f"{', '.join(waits)}; behind is source {sources[source]} with its block {nth}"


def _collective(pulses: Sequence[Pulse], still: str) -> Diagnosis:
    """Ranks by what they are in; those that are the furthest behind are the ones to ask."""
    groups: dict[tuple[int, str], list[int]] = defaultdict(list)
    for p in sorted(pulses, key=lambda p: p.rank):
        groups[p.step, p.phase].append(p.rank)
    behind = min(groups.items(), key=lambda item: (item[0][0], len(item[1])))[1]
    said = [f"ranks {', '.join(map(str, r))} in {phase} of step {step}" for (step, phase), r in sorted(groups.items())]
    alone = " (all in one collective or computation)" if len(groups) == 1 else ""
    return Diagnosis("collective", still + ", ".join(said) + alone, tuple(behind))


def failures_in_a_row(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Failures since the last checkpoint; one with a `reason` (a preemption, a resize) is nobody's fault."""
    last = max((i for i, event in enumerate(events) if event["kind"] == "checkpoint"), default=-1)
    return [event for event in events[last + 1 :] if event["kind"] == "failure" and not event.get("reason")]
