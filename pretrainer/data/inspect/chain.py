"""The whole chain of curation over a sample, nothing dropped: what every stage measured, edited and took in seconds.

A stage's measure of a document depends on that document alone, so the measures taken here are those that a run takes
of the documents that reach the stage; `funnel.decide` finds from them what a run would drop. Dedup alone is no such
stage: see `Dedup`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrainer.config import DedupConfig
from pretrainer.data.curation import AFTER_DEDUP, BEFORE_DEDUP, Builder
from pretrainer.data.dedup.dedup import (
    DUPLICATE_EXACT,
    DUPLICATE_NEAR,
    DUPLICATE_URL,
    Decisions,
    DedupIndex,
    Sketches,
    signatures,
)
from pretrainer.data.dedup.removal import remove_ranges
from pretrainer.data.dedup.sealed import freeze, insert_sealed
from pretrainer.data.filters.normalise import normalise_texts
from pretrainer.data.filters.rules import Rule
from pretrainer.data.filters.stage import LABELS, Measured, Stage, with_texts
from pretrainer.data.inspect.pairs import Pairs, find_pairs, groups_of, spread
from pretrainer.data.inspect.sample import Sample
from pretrainer.data.plan import SourcePlan
from pretrainer.storage import Store

Clock = Callable[[], float]
T = TypeVar("T")
DEDUP = "dedup"
WARM_UP_DOCUMENTS = 16
"""Documents that go through the chain before the clock runs: kernels are compiled and models loaded by then."""


@dataclass(frozen=True)
class Edits:
    """N texts before and behind something that may edit them."""

    before: pa.ChunkedArray = field(repr=False)
    after: pa.ChunkedArray = field(repr=False)  # the same object as `before` where nothing is edited
    size_in: np.ndarray  # [N] int64, UTF-8 bytes
    size_out: np.ndarray  # [N] int64


@dataclass(frozen=True)
class Step:
    """One Stage over N documents; a stage of the config may have several (the groups of a preset)."""

    stage: str
    rules: tuple[Rule, ...]
    measures: dict[str, np.ndarray]  # measure -> [N] float64
    annotates: bool  # the config lets it drop nothing
    edits: Edits


@dataclass(frozen=True)
class Dedup:
    """Dedup over N documents.

    Equal documents and pairs are those of all documents, so that they can be decided again for other survivors. What
    sealed indexes, repeated lines and spans did is known of the config's own survivors alone: `fixed` and `edits`.
    """

    equal: dict[str, np.ndarray]  # reason -> [N] int64, first document with the same key, -1 where it has none
    pairs: Pairs
    threshold: float | None  # None where near-dup is off
    fixed: list[str | None]  # [N]
    edits: Edits

    @property
    def is_on(self) -> bool:
        return bool(self.equal) or self.threshold is not None or any(self.fixed)


@dataclass(frozen=True)
class Timing:
    stage: str
    seconds: float
    bytes: int  # UTF-8 bytes of what it was given, all N documents


@dataclass(frozen=True)
class Chain:
    """What the chain found about the N documents of one source."""

    ids: list[str]
    texts: pa.ChunkedArray = field(repr=False)  # [N] normalised
    size: np.ndarray  # [N] int64, UTF-8 bytes of these
    chars: np.ndarray  # [N] int64, code points
    words: np.ndarray  # [N] int64, between whitespace
    labels: dict[str, list[str]]  # language, licence -> [N] as identified or as the source says, "" where neither
    before: tuple[Step, ...]
    dedup: Dedup
    after: tuple[Step, ...]
    timings: tuple[Timing, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.before + self.after

    @property
    def edits(self) -> list[tuple[str, Edits]]:
        """(stage, what it edits), in order."""
        own = [[(step.stage, step.edits) for step in steps] for steps in (self.before, self.after)]
        return [*own[0], (DEDUP, self.dedup.edits), *own[1]]


def run_chain(plan: SourcePlan, sample: Sample, clock: Clock) -> Chain:
    """Put a sample through every stage that the config has on for its source."""
    before, after = _stages(BEFORE_DEDUP, plan), _stages(AFTER_DEDUP, plan)
    _once(plan, before, after, sample.docs.slice(0, WARM_UP_DOCUMENTS), clock)
    return _once(plan, before, after, sample.docs, clock)


def _stages(builders: Mapping[str, Builder], plan: SourcePlan) -> list[Stage]:
    return [stage for name, build in builders.items() if name not in plan.source.skip for stage in build(plan)]


def _once(plan: SourcePlan, before: Sequence[Stage], after: Sequence[Stage], raw: pa.Table, clock: Clock) -> Chain:
    watch = Watch(clock)
    docs = watch.time("normalise", sizes(raw), lambda: with_texts(raw, normalise_texts(raw.column("text"))))
    texts, size = docs.column("text"), sizes(docs)
    first, docs = _run(plan, before, docs, watch)
    dedup = _dedup(plan, first, docs, watch)
    second, last = _run(plan, after, with_texts(docs, dedup.edits.after), watch)
    labels = {name: last.column(name).to_pylist() for name in LABELS if name in last.column_names}
    chars, words = pc.utf8_length(texts).to_numpy().astype(np.int64), count_words(texts)
    return Chain(
        docs.column("id").to_pylist(), texts, size, chars, words, labels, first, dedup, second, tuple(watch.timings)
    )


def _run(plan: SourcePlan, stages: Sequence[Stage], docs: pa.Table, watch: Watch) -> tuple[tuple[Step, ...], pa.Table]:
    steps = []
    for stage in stages:
        before = docs
        measures, docs = watch.measure(stage, before)
        annotates = stage.name in plan.source.annotate
        steps.append(Step(stage.name, stage.rules, measures, annotates, edits(before, docs)))
    return tuple(steps), docs


def _dedup(plan: SourcePlan, steps: Sequence[Step], docs: pa.Table, watch: Watch) -> Dedup:
    config, count = plan.config.dedup, docs.num_rows
    sketches = watch.time(DEDUP, sizes(docs), lambda: signatures(docs.column("text"), config, docs.column("url")))
    index = DedupIndex(config)
    if config.sealed:
        insert_sealed(index, freeze(config, Store(plan.data_uri).child(f"sealed-{plan.source.name}")))
    alive = _survivors(steps, count)
    own = watch.time(DEDUP, np.zeros(0, np.int64), lambda: index.decide(alive, sketches.select(alive)))
    known = _keyed(sketches, config)
    fixed = np.full(count, None, object)
    fixed[alive] = [None if reason in (*known, DUPLICATE_NEAR) else reason for reason in own.reasons]
    threshold = config.threshold if config.near else None
    return Dedup(known, find_pairs(sketches), threshold, fixed.tolist(), edits(docs, _without(docs, alive, own)))


def _keyed(sketches: Sketches, config: DedupConfig) -> dict[str, np.ndarray]:
    """Reason -> documents with equal keys, in the order in which `DedupIndex` looks."""
    found = {DUPLICATE_EXACT: groups_of(sketches.hashes)} if config.exact else {}
    return found | ({DUPLICATE_URL: groups_of(sketches.urls)} if config.url and sketches.urls is not None else {})


def _survivors(steps: Sequence[Step], count: int) -> np.ndarray:
    """[K] int64 documents that the config's own limits let come to dedup."""
    alive = np.ones(count, bool)
    for step in steps:
        for rule in step.rules if not step.annotates else ():
            alive &= rule.passes(step.measures[rule.measure])
    return np.flatnonzero(alive)


def _without(docs: pa.Table, alive: np.ndarray, own: Decisions) -> pa.Table:
    """The documents without what dedup removes from those that it keeps."""
    if own.removed is None:
        return docs
    return with_texts(docs, remove_ranges(docs.column("text"), spread(own.removed, alive, docs.num_rows)))


def edits(before: pa.Table, after: pa.Table) -> Edits:
    """What became of the texts of a table."""
    texts, size = before.column("text"), sizes(before)
    if after.column("text").equals(texts):
        return Edits(texts, texts, size, size)
    return Edits(texts, after.column("text"), size, sizes(after))


def sizes(docs: pa.Table) -> np.ndarray:
    """[N] int64 UTF-8 bytes of the texts."""
    return pc.binary_length(docs.column("text")).to_numpy().astype(np.int64)


def count_words(texts: pa.ChunkedArray) -> np.ndarray:
    """[N] int64 words between white space."""
    trimmed = pc.utf8_trim_whitespace(texts)
    words = pc.list_value_length(pc.utf8_split_whitespace(trimmed)).to_numpy().astype(np.int64)
    return np.where(pc.binary_length(trimmed).to_numpy() == 0, 0, words)


class Watch:
    """Seconds and bytes by stage, in the order of the first call."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._spent: dict[str, tuple[float, int]] = {}

    def time(self, stage: str, size: np.ndarray, call: Callable[[], T]) -> T:
        start = self.clock()
        result = call()
        seconds, total = self._spent.get(stage, (0.0, 0))
        # The steps of one stage see the same documents, so their bytes count once.
        self._spent[stage] = seconds + self.clock() - start, max(total, int(size.sum()))
        return result

    def measure(self, stage: Stage, docs: pa.Table) -> Measured:
        return self.time(stage.name, sizes(docs), lambda: stage.measure(docs))

    @property
    def timings(self) -> list[Timing]:
        return [Timing(stage, *spent) for stage, spent in self._spent.items()]
