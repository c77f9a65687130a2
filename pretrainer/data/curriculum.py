"""A run's segments: stretches of steps with one mixture and one sequence length each, as plain arithmetic.

A segment begins at a checkpoint with a stream of its own, and the mixing pattern begins anew there. Segments of one
sequence length in a row form a *line*: their sources go on at the slot block where the segment before left them. A
new sequence length begins a new line: the documents are packed anew from the first chunk that the line before has not
touched (`line_start`), and the sequences of its last pack windows that no step took are skipped and counted.
Slot blocks keep their tokens, so steps, batches and block numbers mean the same in every segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pretrainer.config import Config
from pretrainer.data.ledger.windows import Window
from pretrainer.data.mixture import Mixture, make_mixture
from pretrainer.errors import ConfigError


@dataclass(frozen=True)
class SegmentOrder:
    """Which source fills which global slot block of one segment (schema.SlotOrder)."""

    mixture: Mixture
    first_block: int  # global number of the segment's first slot block
    taken: tuple[int, ...]  # blocks of each source that its line gave before the segment

    @property
    def shares(self) -> tuple[int, ...]:
        return self.mixture.shares

    def expected(self, block: int) -> tuple[int, int]:
        """(source, n): global slot block `block` must be the n-th block of that source in its line."""
        source, nth = self.mixture.expected(block - self.first_block)
        return source, self.taken[source] + nth

    def restart(self, block: int) -> tuple[int, list[int]]:
        """(first global block that a restarted stream deals, first block of each source)."""
        start, by_source = self.mixture.restart(block - self.first_block)
        return self.first_block + start, [t + n for t, n in zip(self.taken, by_source, strict=True)]

    def taken_at(self, block: int) -> tuple[int, ...]:
        """Blocks of each source that its line has given before global block `block` of this segment."""
        counts = self.mixture.counts(block - self.first_block)
        return tuple(t + n for t, n in zip(self.taken, counts, strict=True))


@dataclass(frozen=True)
class Segment:
    """One stretch [first_step, end_step) of a run."""

    index: int
    line: int
    first_step: int
    end_step: int
    seq_len: int
    slot_sequences: int
    asked: tuple[float, ...]  # shares by source, which `order` realises in whole slot blocks per cycle
    order: SegmentOrder

    def of(self, config: Config) -> Config:
        """The config as this segment runs it."""
        data = replace(config.data, seq_len=self.seq_len, slot_sequences=self.slot_sequences, curriculum=())
        micro = config.train.micro_batch_sequences
        if micro is not None:
            micro = max(1, micro * self.slot_sequences // config.data.slot_sequences)
        return replace(config, data=data, train=replace(config.train, micro_batch_sequences=micro))


def make_segments(config: Config, weights: Sequence[float]) -> tuple[Segment, ...]:
    """The segments of a run; `weights` are those of the sources where a segment names no shares."""
    return tuple(_segments(config, weights))


def _segments(config: Config, weights: Sequence[float]) -> Iterator[Segment]:
    data, per_step = config.data, config.slot_blocks_per_step
    before: Segment | None = None
    for index, (end_step, shares, seq_len) in enumerate(_stretches(config)):
        asked = tuple(shares or weights)
        mixture = make_mixture(asked, data.mix_cycle)
        first_step = before.end_step if before else 0
        if end_step <= first_step:
            raise ConfigError(
                f"data.curriculum[{index}] has no step: it ends at step {end_step} of {config.total_steps} and begins "
                f"at {first_step}; use fewer segments or more steps"
            )
        same_line = before is not None and before.seq_len == seq_len
        taken = before.order.taken_at(first_step * per_step) if before and same_line else (0,) * len(data.sources)
        line = 0 if before is None else before.line + (not same_line)
        rows = data.seq_len * data.slot_sequences // seq_len
        order = SegmentOrder(mixture, first_step * per_step, taken)
        before = Segment(index, line, first_step, end_step, seq_len, rows, asked, order)
        yield before


def _stretches(config: Config) -> Iterator[tuple[int, tuple[float, ...] | None, int]]:
    """(end step, shares, sequence length) of each segment."""
    if not config.data.curriculum:
        yield config.total_steps, None, config.data.seq_len
    for segment in config.data.curriculum:
        yield round(segment.until * config.total_steps), segment.shares, segment.seq_len or config.data.seq_len


@dataclass(frozen=True)
class Curriculum:
    """The segments of a run as one order of slot blocks (schema.RunOrder)."""

    segments: tuple[Segment, ...]
    blocks_per_step: int

    def at(self, block: int) -> Segment:
        """The segment of a global slot block; the last one from its end on."""
        step = block // self.blocks_per_step
        return next((segment for segment in self.segments if step < segment.end_step), self.segments[-1])

    def of_line(self, line: int) -> list[Segment]:
        return [segment for segment in self.segments if segment.line == line]

    @property
    def lines(self) -> range:
        return range(self.segments[-1].line + 1)

    def line_of(self, block: int) -> int:
        return self.at(block).line

    def slot_sequences_of(self, block: int) -> int:
        return self.at(block).slot_sequences

    def expected(self, block: int) -> tuple[int, int]:
        return self.at(block).order.expected(block)

    def restart(self, block: int) -> tuple[int, list[int]]:
        return self.at(block).order.restart(block)

    def end_block(self, segment: Segment) -> int:
        return segment.end_step * self.blocks_per_step

    def number(self, line: int, source: int, nth: int) -> int | None:
        """The global slot block that is the nth of a source in a line, or None where no step takes it."""
        for segment in self.of_line(line):
            order = segment.order
            if order.taken[source] <= nth < order.taken_at(self.end_block(segment))[source]:
                return order.first_block + order.mixture.number(source, nth - order.taken[source])
        return None


def realised_shares(segments: Sequence[Segment], step: int, blocks_per_step: int) -> list[tuple[float, float]]:
    """By source (asked, realised) share of the slot blocks of the first `step` steps."""
    trained = [(s, min(step, s.end_step) - s.first_step) for s in segments if s.first_step < step]
    total = max(1, sum(steps for _s, steps in trained))
    asked = [sum(s.asked[i] * steps for s, steps in trained) / total for i in range(len(segments[0].asked))]
    counts = [s.order.mixture.counts(steps * blocks_per_step) for s, steps in trained]
    realised = [sum(c[i] for c in counts) / (total * blocks_per_step) for i in range(len(asked))]
    return list(zip(asked, realised, strict=True))


def epochs_needed(segments: Sequence[Segment], batch_tokens: int, epoch_tokens: Sequence[float]) -> list[float]:
    """By source, how often the run passes through it when one epoch of it has `epoch_tokens` tokens."""
    needed = [0.0] * len(epoch_tokens)
    for segment in segments:
        tokens = (segment.end_step - segment.first_step) * batch_tokens
        for source, share in enumerate(segment.order.shares):
            needed[source] += tokens * share / segment.order.mixture.cycle
    return [n / max(1.0, has) for n, has in zip(needed, epoch_tokens, strict=True)]


@dataclass(frozen=True)
class LineStart:
    """Where a source begins in a new line, and what that skips."""

    begin: tuple[int, int]  # (stream position of the unit, chunk in the unit)
    skipped_sequences: int  # of the line before: the rest of its last touched pack window


def line_start(last: Window | None, sequences: int, begin: tuple[int, int]) -> LineStart:
    """Where the next line of a source begins, when the one before took its first `sequences` sequences.

    `last` is the pack window of the last of them; the line before began at `begin`.
    """
    return LineStart(begin, 0) if last is None else LineStart(last.after, last.end_sequence - sequences)
