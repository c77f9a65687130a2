"""The n-gram model against modified Kneser-Ney written down in plain Python."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.data.quality.kneser_ney import FALLBACK_DISCOUNTS, Ngrams, discounts, estimate

VOCAB = 12
MARK = "mark"


def small_corpus(documents: int = 60, seed: int = 0) -> list[list[int]]:
    """Documents over VOCAB - 2 pieces with some structure, some empty, some of a single piece."""
    generator = random.Random(seed)
    found = []
    for _ in range(documents):
        document = [generator.randrange(VOCAB - 2) for _ in range(generator.choice([0, 1, 2, 9, 30]))]
        for i in range(1, len(document)):
            if generator.random() < 0.6:
                document[i] = (document[i - 1] * 3 + 1) % (VOCAB - 2)
        found.append(document)
    return found


def flat(documents: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64)
    return np.array([piece for document in documents for piece in document], np.uint32), offsets


# ------------------------------------------------------------------------------------- the model against a reference


class Reference:
    """Interpolated modified Kneser-Ney by its definition, with dicts."""

    def __init__(self, documents: Sequence[Sequence[int]], order: int, min_count: int) -> None:
        self.order, self.min_count = order, min_count
        self.occurrences: list[Counter] = [Counter() for _ in range(order + 1)]
        for document in documents:
            marked = (MARK, *document)
            for n in range(1, order + 1):
                self.occurrences[n].update(marked[i : i + n] for i in range(len(marked) - n + 1))
        self.occurrences[1].pop((MARK,), None)
        self.counts = [self._counts(n) for n in range(order + 1)]
        self.discounts = [self._discounts(counts) for counts in self.counts]
        self.following: list[dict] = [defaultdict(dict) for _ in range(order + 1)]
        for n in range(1, order + 1):
            for gram, count in self.counts[n].items():
                self.following[n][gram[:-1]][gram[-1]] = count

    def _counts(self, n: int) -> dict[tuple, int]:
        if n in (0, self.order):
            return dict(self.occurrences[n])
        before: dict[tuple, set] = defaultdict(set)
        for gram in self.occurrences[n + 1]:
            before[gram[1:]].add(gram[0])
        return {g: c if g[0] == MARK else len(before[g]) for g, c in self.occurrences[n].items()}

    def _discounts(self, counts: dict[tuple, int]) -> Sequence[float]:
        n1, n2, n3, n4 = (sum(c == k for c in counts.values()) for k in (1, 2, 3, 4))
        if not (n1 and n2 and n3):
            return FALLBACK_DISCOUNTS
        y = n1 / (n1 + 2 * n2)
        found = (0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return found if all(0 < d <= k for k, d in enumerate(found) if k) else FALLBACK_DISCOUNTS

    def probability(self, context: tuple, piece: int) -> float:
        n = len(context) + 1
        shorter = self.probability(context[1:], piece) if context else 1 / VOCAB
        following = self.following[n].get(context)
        if not following:
            return shorter
        least = self.min_count if n >= 3 else 0
        kept = {w: c for w, c in following.items() if self.occurrences[n][*context, w] >= least}
        left = {w: c - self.discounts[n][min(c, 3)] for w, c in kept.items()}
        total = sum(following.values())
        return left.get(piece, 0) / total + (total - sum(left.values())) / total * shorter

    def document(self, pieces: Sequence[int]) -> list[float]:
        marked = (MARK, *pieces)
        contexts = [marked[max(0, i - self.order + 1) : i] for i in range(1, len(marked))]
        return [math.log(self.probability(c, w)) for c, w in zip(contexts, pieces, strict=True)]


@cache
def trained(order: int, min_count: int) -> tuple[Ngrams, Reference]:
    documents = small_corpus()
    return estimate(*flat(documents), VOCAB, order, min_count), Reference(documents, order, min_count)


EACH_MODEL = [(2, 2), (3, 1), (3, 2), (4, 2), (5, 1), (5, 3)]


@pytest.mark.parametrize(("order", "min_count"), EACH_MODEL)
def test_probabilities_are_those_of_the_definition(order: int, min_count: int) -> None:
    model, reference = trained(order, min_count)
    for document in [*small_corpus(20, seed=1), *small_corpus(10), [11, 3, 11, 11, 4], [10]]:
        found = model.each_log_probability(np.array(document, np.uint32))
        assert found == pytest.approx(reference.document(document), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(("order", "min_count"), EACH_MODEL)
def test_probabilities_of_all_pieces_sum_to_one(order: int, min_count: int) -> None:
    model, _ = trained(order, min_count)
    contexts: list[list[int]] = [[], [0], [11], [1, 4], [1, 4, 3, 0, 1], [11, 11], [2, 7, 2], small_corpus()[4][:6]]
    for context in contexts:
        each = [model.each_log_probability(np.array([*context, piece]))[-1] for piece in range(VOCAB)]
        assert np.exp(each).sum() == pytest.approx(1, abs=1e-6), context


def test_unseen_pieces_share_what_is_left() -> None:
    model, _ = trained(3, 2)
    unseen = [model.each_log_probability(np.array([piece]))[0] for piece in (10, 11)]
    assert unseen[0] == unseen[1] and -20 < unseen[0] < -3


def test_singletons_above_bigrams_are_pruned() -> None:
    documents = small_corpus()
    grams = [Counter(tuple(d[i : i + n]) for d in [[VOCAB, *d] for d in documents] for i in range(len(d) - n + 1))
             for n in (2, 3)]  # fmt: skip
    sizes = [VOCAB + 1, len(grams[0]), sum(count >= 2 for count in grams[1].values())]
    model, _ = trained(3, 2)
    assert len(model.pieces) == len(model.log_probabilities) == sum(sizes)
    assert len(model.log_backoffs) == sum(sizes[:2]) == len(model.first_child) - 1
    assert 0 < sizes[2] < len(grams[1])


def test_discounts_by_hand() -> None:
    counts = np.repeat([1.0, 2, 3, 4, 9], [8, 4, 2, 1, 3])
    assert discounts(counts) == pytest.approx([0, 0.5, 2 - 1.5 * 2 / 4, 3 - 2 * 1 / 2])  # y = 8 / (8 + 8)
    assert discounts(np.array([1.0, 1, 5])).tolist() == list(FALLBACK_DISCOUNTS)
    assert discounts(np.repeat([1.0, 2, 3, 4], [1, 1, 9, 1])).tolist() == list(FALLBACK_DISCOUNTS)  # D2 below 0


def test_documents_do_not_see_each_other() -> None:
    model, _ = trained(3, 1)
    documents = small_corpus(30, seed=2)
    together = model.mean_log_probability(*flat(documents))
    alone = [model.mean_log_probability(*flat([document]))[0] for document in documents]
    assert together.tobytes() == np.array(alone).tobytes()
    ids, offsets = flat(documents)
    assert np.array_equal(model.mean_log_probability(ids, offsets[5:9]), together[5:8], equal_nan=True)
    assert np.isnan(together).tolist() == [not document for document in documents]


def test_order_of_documents_changes_no_model() -> None:
    documents = small_corpus()
    one, other = (estimate(*flat(part), VOCAB, 3) for part in (documents, documents[::-1]))
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, other, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, VOCAB - 1), max_size=8), min_size=1, max_size=6).filter(any),
    order=st.integers(2, 5),
    min_count=st.integers(1, 3),
)
def test_tiny_corpora_give_the_definition_too(documents: list[list[int]], order: int, min_count: int) -> None:
    model, reference = estimate(*flat(documents), VOCAB, order, min_count), Reference(documents, order, min_count)
    for document in [*documents, [0, 1, 2, 0, 1, 2]]:
        found = model.each_log_probability(np.array(document, np.uint32))
        assert found == pytest.approx(reference.document(document), rel=1e-5, abs=1e-5)
