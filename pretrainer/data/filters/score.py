"""Limits to numbers that the source brings along: similarity>=0.28, for one language similarity[zh]>=0.26.

A limit with a language beats the one without for documents of that language, in its own direction (>= or <=). A
document whose language has no limit passes. Where a limit holds and the source has no number (no such column, null, not
a number), the document is dropped as score_<column>_missing: what nobody scored is not known to be good.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from pretrainer.config import SourceConfig
from pretrainer.config.limits import Limit, language_tag, parse_limits
from pretrainer.data.filters.rules import Rule
from pretrainer.data.filters.stage import Measured, Stage
from pretrainer.errors import require

Bounds = Mapping[str | None, float]
"""Language, None for every other one -> limit."""


def score_stage(source: SourceConfig) -> Stage:
    """The stage of a source's `scores`.

    Measures per column: score_<column> as the source has it (NaN where it has none), score_<column>_missing (1 or 0)
    and score_<column>_margin, the distance inside the nearest limit (below 0 is outside; NaN where no limit holds).
    """
    field = f"data.sources[{source.name}].scores"
    limits: dict[str, list[Limit]] = {column: [] for column in source.score_columns}
    for limit in parse_limits(source.scores, field):
        limits[limit.name].append(limit)
    reasons = [f"score_{column}{end}" for column in limits for end in ("", "_missing", "_margin")]
    require(len(set(reasons)) == len(reasons), field, list(limits), "rename a column: their measures have one name")

    def measure(docs: pa.Table) -> Measured:
        values = _values(docs.column("scores"), len(limits))
        languages = [language_tag(language) for language in docs.column("language").to_pylist()]
        found: dict[str, np.ndarray] = {}
        for (column, of_column), numbers in zip(limits.items(), values.T, strict=True):
            found |= _measures(f"score_{column}", numbers, languages, of_column)
        return found, docs

    return Stage("score", measure, tuple(rule for column in limits for rule in _rules(f"score_{column}")))


def _rules(name: str) -> tuple[Rule, Rule]:
    return Rule(f"{name}_missing", f"{name}_missing", most=0), Rule(name, f"{name}_margin", least=0)


def _measures(name: str, values: np.ndarray, languages: list[str], limits: list[Limit]) -> dict[str, np.ndarray]:
    """values [N] of one column."""
    least = _bounds(languages, {limit.language: limit.limit for limit in limits if limit.is_least}, -math.inf)
    most = _bounds(languages, {limit.language: limit.limit for limit in limits if not limit.is_least}, math.inf)
    limited = (least > -math.inf) | (most < math.inf)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite values, and no limit, which is infinite too
        above = np.where(least > -math.inf, values - least, math.inf)
        below = np.where(most < math.inf, most - values, math.inf)
    margin = np.minimum(above, below)
    return {
        name: values,
        f"{name}_missing": (limited & np.isnan(values)).astype(np.float64),
        f"{name}_margin": np.where(limited & ~np.isnan(values), margin, np.nan),
    }


def _bounds(languages: list[str], bounds: Bounds, none: float) -> np.ndarray:
    """[N]: the limit that holds for each document, `none` where there is none."""
    other = bounds.get(None, none)
    return np.array([bounds.get(language, other) for language in languages], np.float64)


def _values(scores: pa.ChunkedArray, columns: int) -> np.ndarray:
    """[N, columns] float64, NaN where a list is too short: a reader of files without columns gives empty ones."""
    out = np.full((len(scores), columns), np.nan)
    lists = scores.combine_chunks()
    lengths = np.minimum(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), columns)
    place = np.arange(columns) < lengths[:, None]
    starts = lists.offsets.to_numpy()[:-1, None]
    flat = lists.values.to_numpy(zero_copy_only=False)
    out[place] = flat[(starts + np.arange(columns))[place]]
    return out
