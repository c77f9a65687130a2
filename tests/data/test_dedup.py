"""Dedup decisions: accuracy, survivors, candidates, exemptions, held-out documents."""

from __future__ import annotations

import random
import re

import numpy as np
import pyarrow as pa
import pytest

from pretrainer.data.dedup.dedup import (
    MIN_SHINGLES,
    NO_DUPLICATE,
    Decisions,
    DedupIndex,
    held_out_position,
    signatures,
)
from tests.data.dedup_sketches import (
    CONFIG,
    SIZE,
    edited,
    edited_stream,
    jaccard,
    library_documents,
    made,
    same_bands,
)


def decide(index: DedupIndex, texts: list[str], first: int = 0) -> Decisions:
    return index.decide(np.arange(first, first + len(texts)), signatures(pa.array(texts), CONFIG))


def overlapping(common: int, *tails: int) -> list[np.ndarray]:
    """Sets that share their first `common` elements and have so many of their own."""
    pool = np.random.default_rng(9).permutation(2**20)
    shared, rest = pool[:common], pool[common:]
    ends = np.cumsum([0, *tails])
    return [np.concatenate([shared, rest[a:b]]) for a, b in zip(ends, ends[1:], strict=False)]


def shingle_set(text: str) -> frozenset[str]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return frozenset(" ".join(words[i : i + 5]) for i in range(len(words) - 4))


def test_recall_and_precision_against_exact_jaccard() -> None:
    """A document's truth is its highest exact Jaccard with the documents that were kept before it."""
    texts, decisions = edited_stream(), decide(DedupIndex(CONFIG), list(edited_stream()))
    sets, kept = [shingle_set(text) for text in texts], np.flatnonzero(decisions.kept)
    truth = np.array([max((jaccard(sets[i], sets[j]) for j in kept[kept < i]), default=0.0) for i in range(len(texts))])
    dropped = ~decisions.kept
    assert 60 < np.sum(truth >= 0.85) and 30 < np.sum((truth > 0.5) & (truth < 0.75))
    assert np.mean(dropped[truth >= 0.85]) >= 0.97
    assert np.mean(dropped[truth >= 0.8]) >= 0.97
    similarity = np.array([jaccard(sets[i], sets[decisions.duplicate_of[i]]) for i in np.flatnonzero(dropped)])
    assert np.mean(similarity >= 0.8) >= 0.95
    assert np.all(similarity >= 0.77)
    assert np.abs(similarity - decisions.similarity[dropped]).mean() < 0.01


def test_long_document_does_not_swallow_the_short_ones_in_it() -> None:
    parts = [" ".join(f"p{i}w{j}" for j in range(60)) for i in range(40)]
    for texts in ([" ".join(parts), *parts], [*parts, " ".join(parts)]):
        assert decide(DedupIndex(CONFIG), texts).kept.all()


def test_cluster_of_a_thousand_keeps_its_first() -> None:
    words = [f"w{i}" for i in range(300)]
    texts = [
        " ".join(words[:k] + [f"x{i}"] + words[k + 1 :])
        for i, k in enumerate(random.Random(0).choices(range(300), k=1000))
    ]
    index = DedupIndex(CONFIG)
    decisions = decide(index, texts)
    assert decisions.kept.tolist() == [True] + [False] * 999
    assert set(decisions.reasons[1:]) == {"duplicate_near"} and (decisions.duplicate_of[1:] == 0).all()
    assert len(index) == 1


def test_exact_duplicates_and_no_match_with_oneself() -> None:
    index = DedupIndex(CONFIG)
    decisions = decide(index, ["a b", "c d", "a  b\n", "a B"])
    assert decisions.reasons == [None, None, "duplicate_exact", None]
    assert decisions.duplicate_of.tolist() == [NO_DUPLICATE, NO_DUPLICATE, 0, NO_DUPLICATE]
    assert decisions.similarity.tolist() == [0, 0, 1, 0]
    assert decide(index, ["a b"]).kept.all()


def test_band_hits_alone_never_drop() -> None:
    """1,000 documents that share every band and no shingle."""
    assert DedupIndex(CONFIG).decide(np.arange(1000), made(same_bands(1000))).kept.all()


@pytest.mark.parametrize(("own", "kept"), [(0, False), (30, False), (50, False), (64, True), (100, True)])
def test_candidates_are_dropped_by_their_similarity(own: int, kept: bool) -> None:
    """J of sets of 500 with `own` elements each of their own: (500 - own) / (500 + own); 0.818 and 0.773 at 50, 64."""
    sets = overlapping(SIZE - own, own, own)
    decisions = DedupIndex(CONFIG).decide(np.arange(2), made(same_bands(2), sets))
    assert decisions.kept.tolist() == [True, kept]
    assert decisions.similarity[1] == pytest.approx(0 if kept else (SIZE - own) / (SIZE + own), abs=0.03)


def test_sizes_alone_exclude_a_pair() -> None:
    """A subset has J = its share: 0.81 and 0.79, whatever the sketches would say; no sketch is compared for it."""
    full = np.random.default_rng(0).permutation(2**20)[:1000]
    for size, kept, compared in ((810, False, 1), (790, True, 0)):
        index = DedupIndex(CONFIG)
        assert index.decide(np.arange(2), made(same_bands(2), [full, full[:size]])).kept.tolist() == [True, kept]
        assert index.comparisons == compared


def test_similarity_is_not_transitive_and_dropped_documents_are_not_in_the_index() -> None:
    """A ~ B ~ C, and A is not ~ C: B goes, so C has nothing to duplicate."""
    pool = np.random.default_rng(0).permutation(2**20)
    sketches = made(same_bands(3), [pool[0:500], pool[40:540], pool[80:580]])
    index = DedupIndex(CONFIG)
    assert index.decide(np.arange(3), sketches).reasons == [None, "duplicate_near", None]
    assert len(index) == 2
    assert DedupIndex(CONFIG).decide(np.arange(2), sketches.select(slice(1, 3))).reasons == [None, "duplicate_near"]


def test_earliest_verified_candidate_is_named() -> None:
    """The third is nearer to the second; both are kept because they are not near each other."""
    pool = np.random.default_rng(0).permutation(2**20)
    sets = [pool[0:500], pool[70:570], pool[45:545]]
    decisions = DedupIndex(CONFIG).decide(np.arange(3), made(same_bands(3), sets))
    assert decisions.duplicate_of.tolist() == [NO_DUPLICATE, NO_DUPLICATE, 0]


@pytest.mark.parametrize(("shingles", "reason"), [(MIN_SHINGLES, "duplicate_near"), (MIN_SHINGLES - 1, None)])
def test_documents_with_few_shingles_are_exempt_from_near_dup(shingles: int, reason: str | None) -> None:
    sets = [np.arange(shingles)] * 2
    assert DedupIndex(CONFIG).decide(np.arange(2), made(same_bands(2), sets)).reasons == [None, reason]
    text = " ".join(f"w{i}" for i in range(shingles + 4))
    assert decide(DedupIndex(CONFIG), [text, text + "!"]).reasons == [None, reason]


def test_held_out_documents_win_and_are_named_so() -> None:
    original = library_documents()[0]
    index = DedupIndex(CONFIG)
    index.insert(np.array([held_out_position(0)]), signatures(pa.array([original]), CONFIG))
    decisions = decide(index, [original, edited(original, 0.005, 0), library_documents()[1]])
    assert decisions.reasons == ["held_out", "held_out_near", None]
    assert decisions.duplicate_of[:2].tolist() == [held_out_position(0)] * 2
