"""Which documents of a sample a person should look at: some per reason, some kept, those close to a limit, copies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from pretrainer.data.filters.rules import Rule
from pretrainer.data.inspect.chain import Chain
from pretrainer.data.inspect.diffs import Diff, line_diff, word_diff
from pretrainer.data.inspect.funnel import Decided
from pretrainer.data.inspect.sample import hash_rank

PER_REASON, KEPT, NEAR_LIMIT, EDITED = 12, 50, 3, 8
EXCERPT_CHARS, MIN_EXCERPT_CHARS = 2000, 300
EXCERPTS_BUDGET_CHARS = 1_500_000
"""Of one source; with many reasons the excerpts get shorter."""
MAX_DIFF_CHARS = 4000
CLUSTERS, MEMBERS = 20, 20


class Excerpt(NamedTuple):
    doc: int
    text: str  # its first characters, as read and normalised
    chars: int  # that it has
    edits: list[tuple[str, Diff]]  # (stage, what it changed)


class Cluster(NamedTuple):
    """A kept document and its copies that were dropped, with the words that differ in the least similar of them."""

    kept: int
    size: int  # dropped documents
    members: list[tuple[int, float, str]]  # (document, similarity, reason) of the first ones
    pair: int
    diff: Diff


def excerpts(chain: Chain, decided: Decided) -> list[Excerpt]:
    """Texts for the page, in the order of the documents."""
    chosen = sorted(_chosen(chain, decided))
    chars = max(MIN_EXCERPT_CHARS, min(EXCERPT_CHARS, EXCERPTS_BUDGET_CHARS // max(1, len(chosen))))
    return [
        Excerpt(doc, chain.texts[doc].as_py()[:chars], int(chain.chars[doc]), list(_edits(chain, doc)))
        for doc in chosen
    ]


def _chosen(chain: Chain, decided: Decided) -> set[int]:
    ranks = np.array([hash_rank(doc) for doc in chain.ids], np.uint64)
    by_hash = np.argsort(ranks, kind="stable")
    reasons = np.array(decided.reasons, object)[by_hash]
    found: set[int] = set()
    for reason in dict.fromkeys(reasons.tolist()):
        found.update(by_hash[reasons == reason][: KEPT if reason is None else PER_REASON].tolist())
    for _stage, edits in chain.edits:
        found.update(by_hash[(edits.size_out != edits.size_in)[by_hash]][:EDITED].tolist())
    for step in chain.steps:
        for rule in step.rules:
            found.update(_closest(step.measures[rule.measure], rule, decided.kept))
    return found


def _closest(values: np.ndarray, rule: Rule, kept: np.ndarray) -> list[int]:
    """Kept documents that a small step of the limit would drop."""
    candidates = np.flatnonzero(kept & ~np.isnan(values))
    order = np.argsort(np.abs(values[candidates] - rule.limit), kind="stable")
    return candidates[order[:NEAR_LIMIT]].tolist()


def _edits(chain: Chain, doc: int) -> Iterator[tuple[str, Diff]]:
    for stage, edits in chain.edits:
        if edits.after is not edits.before and edits.after[doc] != edits.before[doc]:
            yield stage, _cut(line_diff(edits.before[doc].as_py(), edits.after[doc].as_py()))


def _cut(diff: Diff) -> Diff:
    """The beginning of a long diff."""
    left, out = MAX_DIFF_CHARS, list[list[str]]()
    for kind, text in diff:
        if left <= 0:
            return [*out, ["…", "more differences"]]
        out.append([kind, text if len(text) <= left else text[:left] + " …"])
        left -= len(text)
    return out


def clusters(chain: Chain, decided: Decided) -> list[Cluster]:
    """The largest ones first."""
    copies = np.flatnonzero(decided.duplicate_of >= 0)
    kept, counts = np.unique(decided.duplicate_of[copies], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:CLUSTERS]
    return [_cluster(chain, decided, int(kept[n]), copies[decided.duplicate_of[copies] == kept[n]]) for n in order]


def _cluster(chain: Chain, decided: Decided, kept: int, members: np.ndarray) -> Cluster:
    texts = chain.dedup.edits.before
    pair = int(members[decided.similarity[members].argmin()])
    shown = [(int(n), float(decided.similarity[n]), str(decided.reasons[n])) for n in members[:MEMBERS]]
    return Cluster(kept, len(members), shown, pair, _cut(word_diff(texts[kept].as_py(), texts[pair].as_py())))


def as_plain(value: Excerpt | Cluster) -> dict[str, Any]:
    return value._asdict()
