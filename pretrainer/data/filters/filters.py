"""A preset over a chunk's texts: measured group by group, edited where a group edits lines, dropped by the first rule.

    verdict = judge(texts, "web")            drops as it goes: later groups see only what is left
    annotate(texts, "web")                   every measure of every document, nothing dropped
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pretrainer.data.filters.normalise import as_large_string
from pretrainer.data.filters.rules import GROUPS, PRESETS, Group, Rule
from pretrainer.errors import ConfigError

OFF = "off"


class Verdict(NamedTuple):
    """N documents in, K of them kept."""

    reasons: list[str | None]  # [N] of the rule that dropped a document, None if it is kept
    texts: pa.LargeStringArray  # [K] the kept ones in order, as edited


def judge(texts: pa.Array | pa.ChunkedArray, preset: str, changes: Sequence[str] = ()) -> Verdict:
    """Apply a preset, with `changes` to its rules such as "gopher_too_few_words=20" or "c4_curly_bracket=off"."""
    left = as_large_string(texts)
    alive, reasons = np.arange(len(left)), np.full(len(left), None, object)
    for group in chosen_groups(preset, changes):
        measures, left = group.measure(left, group.line_limits)
        passed = np.ones(len(left), bool)
        for rule in group.rules:
            failed = passed & ~rule.passes(measures[rule.measure])
            reasons[alive[failed]], passed = rule.reason, passed & ~failed
        if not passed.all():
            alive, left = alive[passed], left.filter(pa.array(passed))
    return Verdict(reasons.tolist(), left)


def annotate(texts: pa.Array | pa.ChunkedArray, preset: str, changes: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Measure -> [N] float64 for every document, whatever its rules would say; groups see the edits before them."""
    left, found = as_large_string(texts), {}
    for group in chosen_groups(preset, changes):
        measures, left = group.measure(left, group.line_limits)
        found.update(measures)
    return found


def chosen_groups(preset: str, changes: Sequence[str] = (), where: str = "data.sources[]") -> list[Group]:
    """The groups of a preset with changed rules. Raises ConfigError that names what can be given."""
    if preset not in PRESETS:
        raise ConfigError(f"{where}.preset={preset!r} is not possible: use one of {', '.join(PRESETS)}")
    wanted = dict(_parse(change, where) for change in changes)
    groups = [GROUPS[name] for name in PRESETS[preset]]
    known = [rule.reason for group in groups for rule in group.rules] + [n for g in groups for n in g.line_limits]
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise ConfigError(
            f"{where}.rules={', '.join(unknown)} is not of preset {preset}: its rules are {', '.join(known)}"
        )
    return [_changed(group, wanted) for group in groups]


def _changed(group: Group, wanted: dict[str, float | None]) -> Group:
    rules = [_rule(rule, wanted) for rule in group.rules]
    limits = {name: wanted.get(name, limit) or 0 for name, limit in group.line_limits.items()}
    return Group(group.measure, tuple(rule for rule in rules if rule is not None), limits)


def _rule(rule: Rule, wanted: dict[str, float | None]) -> Rule | None:
    limit = wanted.get(rule.reason, rule.limit)
    return None if limit is None else rule.with_limit(limit)


def _parse(change: str, where: str) -> tuple[str, float | None]:
    name, _equals, value = change.partition("=")
    try:
        return name, None if value == OFF else float(value)
    except ValueError as error:
        raise ConfigError(
            f"{where}.rules={change!r} is not possible: write a rule and its limit, for example "
            "gopher_too_few_words=20, or turn it off with gopher_too_few_words=off"
        ) from error
