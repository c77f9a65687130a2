"""Where in a config the limit of a rule stands, so that the page can say what would make a moved limit real.

A setting is plain data for the page, one of

    {"in": "rules"}                                an entry of data.sources[].rules
    {"in": "field", "name": …, "also": …}          one field of the data section, for all sources
    {"in": "limits", "name": …, "entries": …, "others": …}   a list of limits, all of which move by as much as the rule

or None where no number of the config stands behind a rule: it is a list of words, or two fields together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pretrainer.config import DataConfig, SourceConfig
from pretrainer.config.limits import Limit, parse_limits

Setting = dict[str, Any] | None

FIELDS = {
    "url_soft_words": "data.url.max_soft_words",
    "low_quality": "data.quality.min_score",
    "high_perplexity": "data.perplexity.max_perplexity",
    "duplicate_exact": "data.dedup.exact",
    "duplicate_url": "data.dedup.url",
    "duplicate_near": "data.dedup.threshold",
    "pii_too_much": "data.pii.max_found",
    "toxic_words": "data.toxicity.max_word_share",
    "toxic_document": "data.toxicity.max_score",
    "contaminated": "data.decontamination.max_overlap",
    "contaminated_held_out": "data.decontamination.max_overlap",
}
"""Reason -> the field that holds its limit."""


def setting_of(stage: str, reason: str, data: DataConfig, source: SourceConfig) -> Setting:
    """The setting behind a reason of a stage."""
    if stage == "rules":
        return {"in": "rules"}
    if reason == "language_low_score":
        return _limits("data.language.keep", parse_limits(data.language.keep, "data.language.keep"), ())
    if stage == "score" and reason.removeprefix("score_") in source.score_columns:
        limits = parse_limits(source.scores, "scores")
        own = [limit for limit in limits if f"score_{limit.name}" == reason]
        return _limits("scores", own, [limit for limit in limits if limit not in own])
    if reason not in FIELDS:
        return None
    # A share to keep and a least score exclude each other.
    also = ["data.quality.keep_share=null"] if reason == "low_quality" and data.quality.keep_share is not None else []
    return {"in": "field", "name": FIELDS[reason], "also": also}


def _limits(name: str, own: Iterable[Limit], others: Iterable[Limit]) -> Setting:
    """A margin above such limits: one that is larger by x is x more with >= and x less with <=."""
    return {
        "in": "limits",
        "name": name,
        "entries": [[_head(limit), 1 if limit.is_least else -1, limit.limit] for limit in own],
        "others": [f"{_head(limit)}{limit.limit!r}" for limit in others],
    }


def _head(limit: Limit) -> str:
    language = f"[{limit.language}]" if limit.language else ""
    return f"{limit.name}{language}{'>=' if limit.is_least else '<='}"
