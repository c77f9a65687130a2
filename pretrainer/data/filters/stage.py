"""What a stage of curation is: it measures documents, may edit them, and its rules drop those whose measure is outside.

    verdict = run_stages(docs, stages)

One table of schema.DOCUMENTS goes in. A stage sees what the stages before it left. With `keep_all` nothing is dropped
(annotate): every stage measures every document, and `reasons` says which rule would have dropped it first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pretrainer.data.filters.rules import Group, Rule

Measured = tuple[dict[str, np.ndarray], pa.Table]
"""(measure -> [N] float64, the documents as they go on, still N of them)."""


LABELS = ("language", "licence")
"""Columns that stages fill."""


class Stage(NamedTuple):
    """One name of config.STAGES may stand for several stages (the rules of a preset)."""

    name: str
    measure: Callable[[pa.Table], Measured]
    rules: tuple[Rule, ...]


class Verdict(NamedTuple):
    """N documents in, K of them kept."""

    docs: pa.Table  # [K] the kept ones in order, as edited
    reasons: list[str | None]  # [N] of the rule that dropped a document first, None if none would
    stages: list[str | None]  # [N] name of that rule's stage
    kept: np.ndarray  # [N] bool; a document with a reason is kept where its stage only annotates
    measures: dict[str, np.ndarray]  # measure -> [N] float64, NaN where a document had left before
    labels: dict[str, np.ndarray]  # column of LABELS -> [N] object, as it was when the document was seen last


def run_stages(docs: pa.Table, stages: Sequence[Stage], annotate: Collection[str] = ()) -> Verdict:
    """Put documents through stages in order; those named in `annotate` drop nothing."""
    count = docs.num_rows
    alive, reasons, names = np.arange(count), np.full(count, None, object), np.full(count, None, object)
    measures: dict[str, np.ndarray] = {}
    labels = {name: _cells(docs, name).copy() for name in LABELS if name in docs.column_names}
    for stage in stages:
        found, docs = stage.measure(docs)
        for name, values in found.items():
            measures[name] = np.full(count, np.nan)
            measures[name][alive] = values
        for name, cells in labels.items():
            cells[alive] = _cells(docs, name)
        passed = np.ones(len(alive), bool)
        for rule in stage.rules:
            failed = passed & ~rule.passes(found[rule.measure])
            first = alive[failed & (reasons[alive] == None)]  # noqa: E711  (elementwise)
            reasons[first], names[first], passed = rule.reason, stage.name, passed & ~failed
        if stage.name not in annotate and not passed.all():
            alive, docs = alive[passed], docs.filter(pa.array(passed))
    kept = np.zeros(count, bool)
    kept[alive] = True
    return Verdict(docs, reasons.tolist(), names.tolist(), kept, measures, labels)


def _cells(docs: pa.Table, name: str) -> np.ndarray:
    return docs.column(name).to_numpy()


def text_stage(name: str, group: Group) -> Stage:
    """A group of rules over texts as a stage over documents."""

    def measure(docs: pa.Table) -> Measured:
        measures, texts = group.measure(docs.column("text").combine_chunks(), group.line_limits)
        return measures, with_texts(docs, texts)

    return Stage(name, measure, group.rules)


def with_texts(docs: pa.Table, texts: pa.Array) -> pa.Table:
    """The documents with other texts."""
    return docs.set_column(docs.schema.get_field_index("text"), docs.schema.field("text"), texts)
