"""What a run would drop, from what the chain measured: for its own limits and for any others.

    decided = decide(chain)                                  as the config has it
    decided = decide(chain, {"gopher_too_few_words": 20})    as with data.sources[].rules=[gopher_too_few_words=20]
    for row in funnel(chain, decided): ...

`model.js` does the same in the page; the tests hold the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pretrainer.config import SourceConfig
from pretrainer.data.curation import AFTER_DEDUP, BEFORE_DEDUP
from pretrainer.data.dedup.dedup import DUPLICATE_NEAR
from pretrainer.data.inspect.chain import DEDUP, Chain, Dedup, Step

Limits = Mapping[str, float | None]
"""Reason -> limit, None where its rule is off. duplicate_near has the similarity from which a document is dropped; 1
stands for a reason of dedup that has no number."""


@dataclass(frozen=True)
class Decided:
    """What becomes of N documents."""

    stages: list[str | None]  # [N] that drops the document, None if it is kept
    reasons: list[str | None]  # [N]
    duplicate_of: np.ndarray  # [N] int64, number of the kept document, -1 where it is no duplicate
    similarity: np.ndarray  # [N] float64, 1 for exact duplicates, 0 where it is none

    @property
    def kept(self) -> np.ndarray:
        return np.array([stage is None for stage in self.stages], bool)


class Row(NamedTuple):
    """One stage of the funnel: documents_in = dropped + out, bytes_in = dropped + edited + out."""

    stage: str
    documents_in: int
    bytes_in: int
    documents_dropped: int
    bytes_dropped: int
    bytes_edited: int  # what its edits took from documents that go on; below 0 where they added
    documents_out: int
    bytes_out: int

    @property
    def removed(self) -> float:
        """Share of the documents that arrive."""
        return self.documents_dropped / max(1, self.documents_in)


class Band(NamedTuple):
    """What stages together usually remove of the documents that arrive, in the field, from a raw crawl."""

    name: str
    stages: tuple[str, ...]
    least: float
    most: float
    words: str


# Shares as people report them for raw crawls; a single number in the literature has a tenth on both sides here.
BANDS = (
    Band("URL filter", ("url",), 0.4, 0.6, "about 50 %"),
    Band("language", ("language",), 0.2, 0.4, "about 30 %"),
    Band("quality", ("rules", "score", "quality", "perplexity"), 0.6, 0.8, "60–80 %"),
    Band("dedup", ("dedup",), 0.3, 0.5, "30–50 %"),
)
LEFT = (0.01, 0.05)
"""Share of a raw crawl's documents that is left in the end."""
CRAWL_PRESETS = frozenset({"web", "c4", "fineweb", "refinedweb"})
CRAWL_FORMATS = frozenset({"warc", "wet", "html"})


def is_raw_crawl(source: SourceConfig) -> bool:
    """Whether the bands say anything about a source: they do not about code, books or text that was cleaned before."""
    return source.preset in CRAWL_PRESETS or source.format in CRAWL_FORMATS


def own_limits(chain: Chain) -> dict[str, float | None]:
    """The limits of the config; a stage that only annotates has its rules off."""
    limits: dict[str, float | None] = {}
    for step in chain.steps:
        limits |= {rule.reason: None if step.annotates else rule.limit for rule in step.rules}
    return limits | {reason: 1.0 for reason in chain.dedup.equal} | {DUPLICATE_NEAR: chain.dedup.threshold}


def decide(chain: Chain, changes: Limits | None = None) -> Decided:
    """What the limits of the config, with changes, drop: the first rule that a document fails is its reason."""
    limits = own_limits(chain) | dict(changes or {})
    count = len(chain.ids)
    decided = Decided([None] * count, [None] * count, np.full(count, -1, np.int64), np.zeros(count))
    for step in chain.before:
        _apply(step, limits, decided)
    _deduplicate(chain.dedup, limits, decided)
    for step in chain.after:
        _apply(step, limits, decided)
    return decided


def _apply(step: Step, limits: Limits, decided: Decided) -> None:
    for rule in step.rules:
        limit = limits[rule.reason]
        if limit is None or math.isinf(limit):
            continue
        failed = ~rule.with_limit(limit).passes(step.measures[rule.measure])
        for doc in np.flatnonzero(failed & decided.kept).tolist():
            decided.stages[doc], decided.reasons[doc] = step.stage, rule.reason


def _deduplicate(dedup: Dedup, limits: Limits, decided: Decided) -> None:
    """As `DedupIndex.decide`: against the kept documents before, equal keys first, then the earliest near one."""
    kept, threshold = decided.kept, limits[DUPLICATE_NEAR]
    first: dict[tuple[str, int], int] = {}
    for doc in np.flatnonzero(kept).tolist():
        keys = [(reason, int(group[doc])) for reason, group in dedup.equal.items() if group[doc] >= 0]
        found = next(((first[key], 1.0, key[0]) for key in keys if key in first and limits[key[0]] is not None), None)
        found = found or _earliest_near(dedup, doc, kept, threshold)
        if (reason := dedup.fixed[doc]) is not None:
            found = (-1, 0.0, reason)
        if found is None:
            first.update(dict.fromkeys(keys, doc))
            continue
        kept[doc], decided.stages[doc], decided.reasons[doc] = False, DEDUP, found[2]
        decided.duplicate_of[doc], decided.similarity[doc] = found[:2]


def _earliest_near(dedup: Dedup, doc: int, kept: np.ndarray, threshold: float | None) -> tuple[int, float, str] | None:
    earlier, similarity = dedup.pairs.of(doc)
    close = np.flatnonzero(kept[earlier] & (similarity >= (math.inf if threshold is None else threshold)))
    return (int(earlier[close[0]]), float(similarity[close[0]]), DUPLICATE_NEAR) if len(close) else None


def funnel(chain: Chain, decided: Decided, stages: Sequence[str] | None = None) -> list[Row]:
    """A row by stage, in order; consecutive rows meet. All go through those of `stages` that the source has not."""
    own = {stage: (size_in, size_out) for stage, size_in, size_out in _stage_sizes(chain)}
    rows, alive, size = [], np.ones(len(chain.ids), bool), chain.size
    for stage in own if stages is None else stages:
        size_in, size_out = own.get(stage, (size, size))
        dropped = alive & np.array([name == stage for name in decided.stages], bool)
        left = alive & ~dropped
        arrives, lost, goes_on = int(size_in[alive].sum()), int(size_in[dropped].sum()), int(size_out[left].sum())
        edited = arrives - lost - goes_on
        rows.append(Row(stage, int(alive.sum()), arrives, int(dropped.sum()), lost, edited, int(left.sum()), goes_on))
        alive, size = left, size_out
    return rows


def stage_names(chain: Chain) -> list[str]:
    """The stages that a source goes through, in order."""
    return [stage for stage, _size_in, _size_out in _stage_sizes(chain)]


def _stage_sizes(chain: Chain) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(stage, bytes of every document before it, bytes behind it)."""
    yield from _merged(chain.before)
    if chain.dedup.is_on:
        yield DEDUP, chain.dedup.edits.size_in, chain.dedup.edits.size_out
    yield from _merged(chain.after)


def _merged(steps: Sequence[Step]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for stage in dict.fromkeys(step.stage for step in steps):
        own = [step for step in steps if step.stage == stage]
        yield stage, own[0].edits.size_in, own[-1].edits.size_out


def all_stages(chains: Sequence[Chain]) -> list[str]:
    """The stages that any source goes through, in the order of curation."""
    used = dict.fromkeys(stage for chain in chains for stage in stage_names(chain))
    order = [*BEFORE_DEDUP, DEDUP, *AFTER_DEDUP]
    return sorted(used, key=lambda stage: order.index(stage) if stage in order else len(order))


def add_up(funnels: Sequence[Sequence[Row]]) -> list[Row]:
    """The funnel of all sources from theirs, which have the same stages."""
    return [
        Row(rows[0].stage, *(sum(numbers) for numbers in list(zip(*rows, strict=True))[1:]))
        for rows in zip(*funnels, strict=True)
    ]


class Judged(NamedTuple):
    """A band beside what its stages removed here."""

    band: Band
    removed: float
    inside: bool
    last: str  # the last of its stages, behind which it can be read


def judge_bands(rows: Sequence[Row]) -> list[Judged]:
    """The bands whose stages are in a funnel, by what they removed together."""
    found = []
    for band in BANDS:
        own = [row for row in rows if row.stage in band.stages]
        if own and own[0].documents_in:
            removed = 1 - own[-1].documents_out / own[0].documents_in
            found.append(Judged(band, removed, band.least <= removed <= band.most, own[-1].stage))
    return found
