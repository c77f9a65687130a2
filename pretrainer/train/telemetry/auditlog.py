"""Reads an audit log and proves from it alone that every step was trained once, on the stream that it should have.

Each attempt (worker group) begins at a committed step and says so in an object of its own: from there on it replaces
what earlier attempts logged, whose lines of those steps are *replays* and must have the same digests. What is left is
one line per step. The chain of digests runs through every line, so a changed line is found at its own step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from pretrainer.config import Config
from pretrainer.schema import RunOrder
from pretrainer.storage import Store
from pretrainer.train.batch import chain
from pretrainer.train.telemetry.audit import ATTEMPTS, AUDIT, provenance

_NAME = re.compile(r"(\d+)-(\d+)-a(\d+)\.jsonl")


@dataclass(frozen=True)
class Line:
    """One trained step; the fields are those of audit.audit_lines."""

    step: int
    segment: int
    digest: str
    order_digest: str
    tokens: int
    targets: int
    world_size: int
    attempt: int
    applied: bool
    provenance: dict[str, list[int]]
    reason: str = ""  # why it was not applied, one of spikes.REASONS
    loss: float | None = None  # as it was trained; None where it was not finite, and in older logs
    grad_norm: float | None = None


@dataclass(frozen=True)
class Attempt:
    """A worker group: the committed step that it went on from, and how many ranks it had."""

    attempt: int
    step: int
    world_size: int
    time_s: float


@dataclass(frozen=True)
class AuditObject:
    """One object of lines, as its name says it should be."""

    name: str
    first: int
    last: int
    attempt: int
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class AuditLog:
    """Everything in a run's audit folder, and what in it could not be read."""

    attempts: tuple[Attempt, ...]
    objects: tuple[AuditObject, ...]  # by attempt, then by step
    damage: tuple[str, ...] = ()


@dataclass(frozen=True)
class Restart:
    """An attempt after the first: where it went on, and how many logged steps it trained again."""

    attempt: int
    step: int
    world_size: int
    replayed_steps: int


@dataclass
class Verdict:
    """What the log proves; `problems` is empty when it proves everything, else the first difference comes first."""

    lines: list[Line] = field(default_factory=list)  # one per step, 0, 1, 2 …
    checkpoint_after: dict[int, int] = field(default_factory=dict)  # step -> step of the first checkpoint with it
    restarts: list[Restart] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def world_sizes(self) -> list[tuple[int, int, int]]:
        """(first step, last step, world size) of each stretch."""
        stretches = []
        for world, group in groupby(self.lines, key=lambda line: line.world_size):
            lines = list(group)
            stretches.append((lines[0].step, lines[-1].step, world))
        return stretches

    def sequences(self, steps: int) -> dict[str, int]:
        """By source: the end of the sequences in the first `steps` steps."""
        ends: dict[str, int] = {}
        for line in self.lines[:steps]:
            ends.update({name: end for name, (_first, end) in line.provenance.items()})
        return ends


def object_range(path: str) -> tuple[int, int, int] | None:
    """(first step, last step, attempt) of an audit object, from its name; None for another object."""
    matched = _NAME.fullmatch(path.rpartition("/")[2])
    return None if matched is None else (int(matched[1]), int(matched[2]), int(matched[3]))


def read_log(run: Store) -> AuditLog:
    """The audit folder of a run; whatever cannot be read is kept as damage with its place."""
    damage: list[str] = []
    attempts = [_attempt(run, entry.path, damage) for entry in run.list(ATTEMPTS)]
    names = [entry.path for entry in run.list(AUDIT) if entry.path.endswith(".jsonl")]
    objects = [_object(run, name, damage) for name in names]
    found = sorted((o for o in objects if o is not None), key=lambda o: (o.attempt, o.first, o.last))
    return AuditLog(tuple(a for a in attempts if a is not None), tuple(found), tuple(damage))


def _attempt(run: Store, path: str, damage: list[str]) -> Attempt | None:
    try:
        return Attempt(**json.loads(run.read(path)))
    except (ValueError, TypeError) as error:
        damage.append(f"{path} cannot be read: {error}")
        return None


def _object(run: Store, path: str, damage: list[str]) -> AuditObject | None:
    named = object_range(path)
    if named is None:
        damage.append(f"{path} has not the name of an audit object")
        return None
    first, last, attempt = named
    lines: list[Line] = []
    for number, text in enumerate(run.read(path).decode("utf-8", "replace").splitlines()):
        try:
            lines.append(Line(**json.loads(text)))
        except (ValueError, TypeError) as error:
            damage.append(f"step {first + number}: line {number + 1} of {path} cannot be read: {error}")
    return AuditObject(path, first, last, attempt, tuple(lines))


def examine(log: AuditLog, config: Config, order: RunOrder, committed_steps: int) -> Verdict:
    """Every check that the log alone allows; `committed_steps` is the step of the newest committed checkpoint."""
    verdict = Verdict(problems=list(log.damage))
    for listed in log.objects:
        verdict.problems += _object_problems(listed)
    _fold(log, verdict)
    verdict.problems += _missing_steps(verdict.lines, committed_steps)
    verdict.problems += _chain_problems(verdict.lines)
    verdict.problems += _stream_problems(verdict.lines, config, order)
    return verdict


def compare_digest(verdict: Verdict, steps: int, order_digest: str, where: str) -> list[str]:
    """Whether the digest of the first `steps` steps, computed again from the lines, is what `where` says."""
    found = ""
    for line in verdict.lines[:steps]:
        found = chain(found, line.digest)
    if found == order_digest:
        return []
    return [f"step {max(0, steps - 1)}: the log's order digest is {found or 'empty'}, {where} has {order_digest}"]


def _object_problems(listed: AuditObject) -> Iterator[str]:
    """An object holds the consecutive steps of one attempt that its name says."""
    steps = [line.step for line in listed.lines]
    expected = list(range(listed.first, listed.last + 1))
    for want, got in zip(expected, steps, strict=False):
        if want != got:
            yield f"step {want}: {listed.name} has step {got} in its place"
            return
    if len(steps) != len(expected):
        yield f"step {listed.first + min(len(steps), len(expected))}: {listed.name} has {len(steps)} lines"
    for line in listed.lines:
        if line.attempt != listed.attempt:
            yield f"step {line.step}: {listed.name} has a line of attempt {line.attempt}"


def _fold(log: AuditLog, verdict: Verdict) -> None:
    """Attempt by attempt: what counts, what was trained twice, what is missing."""
    numbers = [attempt.attempt for attempt in log.attempts]
    if numbers != list(range(len(numbers))):
        verdict.problems.append(f"attempts are numbered {numbers}: one is missing")
    for listed in log.objects:
        if listed.attempt not in numbers:
            verdict.problems.append(f"step {listed.first}: {listed.name} is of an attempt that never started")
    for attempt in log.attempts:
        _fold_attempt(attempt, [o for o in log.objects if o.attempt == attempt.attempt], verdict)


def _fold_attempt(attempt: Attempt, objects: list[AuditObject], verdict: Verdict) -> None:
    logged = len(verdict.lines)
    if attempt.step > logged:
        verdict.problems.append(
            f"step {logged}: attempt {attempt.attempt} went on at step {attempt.step} and nothing before it "
            f"logged steps {logged} to {attempt.step - 1}"
        )
    replaced, kept = verdict.lines[attempt.step :], verdict.lines[: attempt.step]
    own: list[Line] = []
    for listed in objects:
        at = attempt.step + len(own)
        if listed.first != at:
            what = "is logged twice" if listed.first < at else "is missing"
            verdict.problems.append(f"step {min(at, listed.first)}: it {what} in attempt {attempt.attempt}")
        own += listed.lines
        verdict.checkpoint_after.update(dict.fromkeys(range(listed.first, listed.last + 1), listed.last + 1))
    verdict.problems += _replay_problems(replaced, own)
    verdict.problems += _world_problems(attempt, own)
    verdict.lines = kept + own
    if attempt.attempt:
        verdict.restarts.append(Restart(attempt.attempt, attempt.step, attempt.world_size, len(replaced)))


def _replay_problems(before: Iterable[Line], after: Iterable[Line]) -> Iterator[str]:
    """A step that was trained twice must have been the same step."""
    again = {line.step: line for line in after}
    for old in before:
        new = again.get(old.step, old)
        for name in ("digest", "tokens", "targets", "provenance"):
            if getattr(old, name) != getattr(new, name):
                yield (
                    f"step {old.step}: attempts {old.attempt} and {new.attempt} both trained it, with {name} "
                    f"{getattr(old, name)} and {getattr(new, name)}"
                )


def _world_problems(attempt: Attempt, lines: Iterable[Line]) -> Iterator[str]:
    for line in lines:
        if line.world_size != attempt.world_size:
            yield f"step {line.step}: world size {line.world_size}, attempt {attempt.attempt} has {attempt.world_size}"


def _missing_steps(lines: list[Line], committed_steps: int) -> Iterator[str]:
    """Steps 0, 1, … up to the committed one, each once and in order; more may wait for their commit."""
    for expected, line in enumerate(lines):
        if line.step != expected:
            what = "is missing" if line.step > expected else f"is followed by step {line.step} again"
            yield f"step {expected if line.step > expected else expected - 1}: it {what}"
            return
    if len(lines) < committed_steps:
        yield f"step {len(lines)}: it is missing, the committed checkpoint has {committed_steps} steps"


def _chain_problems(lines: Iterable[Line]) -> Iterator[str]:
    """Each line's order digest is that of the line before, extended by its own digest."""
    before = ""
    for line in lines:
        if not re.fullmatch(r"[0-9a-f]{64}", line.digest) or chain(before, line.digest) != line.order_digest:
            yield f"step {line.step}: its digest is not the one that the order digest was made from"
            return
        before = line.order_digest


def _stream_problems(lines: Iterable[Line], config: Config, order: RunOrder) -> Iterator[str]:
    """Sequences of each source go on where the step before ended, and are those that the mixture deals."""
    blocks, ends, packing = config.slot_blocks_per_step, dict[str, int](), 0
    for line in lines:
        first_block, end_block = line.step * blocks, (line.step + 1) * blocks
        if order.line_of(first_block) != packing:
            packing, ends = order.line_of(first_block), {}  # packed anew: sequences count from 0 again
        for name, (first, end) in line.provenance.items():
            if first != ends.get(name, 0):
                yield f"step {line.step}: source {name} goes on at sequence {first}, expected {ends.get(name, 0)}"
                return
            ends[name] = end
        size, numbers = order.slot_sequences_of(first_block), list(range(first_block, end_block))
        expected: dict[str, Any] = provenance(config, size, order, numbers)
        if line.provenance != expected:
            yield f"step {line.step}: sequences {line.provenance}, the mixture deals {expected}"
            return
        if line.tokens != config.train.global_batch_tokens or not 0 <= line.targets <= line.tokens:
            yield f"step {line.step}: {line.tokens} tokens, {line.targets} targets; a batch has " \
                  f"{config.train.global_batch_tokens} tokens"  # fmt: skip
            return
