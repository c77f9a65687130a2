"""Plans of the lines of a run: one packing of the sources each; see `curriculum`.

    data/lines/<line>.json    for each source, where the line begins, and how many sequences of the one before it skips

Where a line begins follows from the pack windows of the line before, so it is a pure function of inputs and config too;
it is written down when the line is first opened, before anything of it is trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

from pretrainer.data import fingerprint
from pretrainer.data.curriculum import LineStart, Segment, line_start
from pretrainer.data.plan import SourcePlan
from pretrainer.errors import StreamError
from pretrainer.storage import Store


def open_line(
    data: Store, base: Sequence[SourcePlan], segments: Sequence[Segment], line: int, blocks_per_step: int
) -> tuple[SourcePlan, ...]:
    """The plans of a line; those of line 0 are `base`. The lines before it have been trained to their ends."""
    if line == 0:
        return tuple(base)
    starts = read_line(data, line)
    if not starts:
        before = open_line(data, base, segments, line - 1, blocks_per_step)
        starts = _starts(before, [s for s in segments if s.line == line - 1][-1], blocks_per_step)
        data.create(f"lines/{line}.json", json.dumps([asdict(start) for start in starts]).encode())
    return tuple(_plan(plan, _first(segments, line), start) for plan, start in zip(base, starts, strict=True))


def begun_lines(data: Store, segments: Sequence[Segment]) -> list[int]:
    """The lines that the run has come to."""
    return [line for line in range(segments[-1].line + 1) if line == 0 or data.exists(f"lines/{line}.json")]


def begun_plans(data: Store, base: Sequence[SourcePlan], segments: Sequence[Segment]) -> list[tuple[SourcePlan, ...]]:
    """The plans of the lines that the run has come to; opens none."""
    later = [(_first(segments, line), read_line(data, line)) for line in begun_lines(data, segments)[1:]]
    return [
        tuple(base),
        *(tuple(_plan(p, segment, s) for p, s in zip(base, starts, strict=True)) for segment, starts in later),
    ]


def read_line(data: Store, line: int) -> list[LineStart]:
    """By source, where a line begins; [] while nobody has opened it."""
    if not data.exists(f"lines/{line}.json"):
        return []
    raw = json.loads(data.read(f"lines/{line}.json"))
    return [LineStart((unit, chunk), start["skipped_sequences"]) for start in raw for unit, chunk in [start["begin"]]]


def _first(segments: Sequence[Segment], line: int) -> Segment:
    return next(s for s in segments if s.line == line)


def _starts(before: Sequence[SourcePlan], last: Segment, blocks_per_step: int) -> list[LineStart]:
    taken = last.order.taken_at(last.end_step * blocks_per_step)
    return [_start(plan, blocks * last.slot_sequences) for plan, blocks in zip(before, taken, strict=True)]


def _start(plan: SourcePlan, sequences: int) -> LineStart:
    window = plan.windows.of_sequence(sequences - 1) if sequences else None
    if sequences and window is None:
        raise StreamError(f"source {plan.source.name}: sequence {sequences - 1} was trained but is in no pack window")
    return line_start(window, sequences, plan.begin)


def _plan(base: SourcePlan, segment: Segment, start: LineStart) -> SourcePlan:
    config = replace(base.config, seq_len=segment.seq_len, slot_sequences=segment.slot_sequences, curriculum=())
    packing = fingerprint.digest([base.packing, segment.line, segment.seq_len, segment.slot_sequences, start.begin])
    return replace(base, config=config, packing=packing, begin=start.begin)
