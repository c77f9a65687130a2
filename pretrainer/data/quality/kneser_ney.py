"""An n-gram language model with interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998), counted with numpy.

    p(w | h) = (a(h w) - D(a(h w))) / a(h .) + g(h) p(w | h'),  h' is h without its first piece, p(w | ) ends in 1 / V

a: occurrences for the highest order and for n-grams that begin a document, else how many different pieces stand before
the n-gram (its continuation count). D1, D2, D3+ of each order come from its counts of counts; where those give no
number between 0 and the count (tiny corpora) they are 0.5, 1 and 1.5, as in KenLM (Heafield et al. 2013). g(h) is
whatever makes the sum over all V pieces 1, so it does so after pruning as well.

Pruned are n-grams of order 3 and more that occur less than `min_count` times (KenLM's --prune 0 0 1 by default); a
kept n-gram's prefix and suffix occur at least as often, so they are kept too. A document begins with a mark that only
stands in contexts. Departure from KenLM: no end mark, because chunks of documents and cut texts have none.

The n-grams are a trie in breadth-first order: node i < V is the piece i, node V is the mark, then come the bigrams
sorted by (first, second piece), and so on; the children of node i are first_child[i] to first_child[i + 1]. N-grams are
counted by exact 64-bit keys, (number of the prefix) (V + 1) + piece, so nothing depends on hashes.

Legend: V vocabulary, M nodes, I nodes of less than the highest order, T pieces, N documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pretrainer.data.compiled import kernel

FALLBACK_DISCOUNTS = (0.0, 0.5, 1.0, 1.5)
NEVER = -99.0
"""Log probability of the mark of the beginning, which is in no text."""


class Ngrams(NamedTuple):
    """A model; logarithms are natural."""

    order: int
    vocab_size: int
    pieces: np.ndarray  # [M] uint32, last piece of each node's n-gram
    log_probabilities: np.ndarray  # [M] float32, log p(piece | the rest)
    log_backoffs: np.ndarray  # [I] float32, log g(n-gram)
    first_child: np.ndarray  # [I + 1] int64

    def mean_log_probability(self, ids: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """[N] float64 of documents ids[offsets[i]:offsets[i + 1]]; NaN for one without pieces."""
        return self._evaluate(ids, offsets)[0]

    def each_log_probability(self, ids: np.ndarray) -> np.ndarray:
        """[T] float64: log p of each piece of one document after those before it."""
        return self._evaluate(ids, np.array([0, len(ids)]))[1]

    def _evaluate(self, ids: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means, each = np.empty(len(offsets) - 1), np.empty(len(ids))
        _evaluate(ids.astype(np.uint32), offsets.astype(np.int64), self.order, self.vocab_size, *self[2:], means, each)
        return means, each


class _Layer(NamedTuple):
    """All different n-grams of one order, sorted by (parent, piece)."""

    pieces: np.ndarray
    parents: np.ndarray  # number in the layer below of the n-gram without its last piece
    suffixes: np.ndarray  # the same without its first piece
    occurrences: np.ndarray
    begins: np.ndarray  # bool: its first piece is the mark


def estimate(ids: np.ndarray, offsets: np.ndarray, vocab_size: int, order: int, min_count: int = 2) -> Ngrams:
    """The model of documents ids[offsets[i]:offsets[i + 1]], ids below vocab_size."""
    layers = _count(ids, offsets, vocab_size, order)
    counts = [*_continuations(layers), layers[-1].occurrences.astype(np.float64)]
    kept = [layer.occurrences >= (min_count if n >= 3 else 0) for n, layer in enumerate(layers, 1)]
    probabilities, backoffs = _unigrams(counts[0], vocab_size), []
    logs = [np.log(probabilities, out=np.full(vocab_size + 1, NEVER), where=probabilities > 0)]
    for layer, count, keep in zip(layers[1:], counts[1:], kept[1:], strict=True):
        probabilities, backoff = _interpolate(layer, count, keep, probabilities)
        logs.append(np.log(probabilities))
        backoffs.append(np.log(backoff))
    return _trie(layers, kept, logs, backoffs, vocab_size)


def _count(ids: np.ndarray, offsets: np.ndarray, vocab_size: int, order: int) -> list[_Layer]:
    stream, place = _with_marks(ids, offsets, vocab_size)
    number = stream  # [T + N] of the n-gram that ends here, -1 where the document is too short before
    everyone = np.arange(vocab_size + 1)
    seen = np.bincount(stream, minlength=vocab_size + 1)
    layers = [_Layer(everyone, np.zeros_like(everyone), np.zeros_like(everyone), seen, everyone == vocab_size)]
    for n in range(2, order + 1):
        ends = np.flatnonzero(place >= n - 1)
        keys = number[ends - 1] * (vocab_size + 1) + stream[ends]
        unique, inverse, occurrences = np.unique(keys, return_inverse=True, return_counts=True)
        suffixes, begins = np.empty_like(unique), np.zeros(len(unique), bool)
        suffixes[inverse], begins[inverse] = number[ends], place[ends] == n - 1
        parents, pieces = np.divmod(unique, vocab_size + 1)
        layers.append(_Layer(pieces, parents, suffixes, occurrences, begins))
        number = np.full(len(stream), -1, np.int64)
        number[ends] = inverse
    return layers


def _with_marks(ids: np.ndarray, offsets: np.ndarray, mark: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids with a mark before each document, place of each in its document; the mark's is 0): [T + N] int64."""
    lengths = np.diff(offsets)
    starts = offsets[:-1] + np.arange(len(lengths))
    stream = np.insert(ids[offsets[0] : offsets[-1]].astype(np.int64), offsets[:-1] - offsets[0], mark)
    return stream, np.arange(len(stream)) - np.repeat(starts - offsets[0], lengths + 1)


def _continuations(layers: Sequence[_Layer]) -> list[np.ndarray]:
    """Counts a of every order but the highest, float64."""
    found = []
    for layer, longer in zip(layers, layers[1:], strict=False):
        before = np.bincount(longer.suffixes, minlength=len(layer.pieces))
        found.append(np.where(layer.begins, layer.occurrences, before).astype(np.float64))
    found[0][-1] = 0  # the mark is never predicted
    return found


def discounts(counts: np.ndarray) -> np.ndarray:
    """[4] float64: what is taken from a count of 0, 1, 2, and 3 or more."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if min(n1, n2, n3) == 0:
        return np.array(FALLBACK_DISCOUNTS)
    y = n1 / (n1 + 2 * n2)
    found = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    possible = all(0 < d <= k for k, d in enumerate(found[1:], 1))
    return found if possible else np.array(FALLBACK_DISCOUNTS)


def _discounted(counts: np.ndarray) -> np.ndarray:
    return counts - discounts(counts)[np.minimum(counts, 3).astype(np.int64)]


def _unigrams(counts: np.ndarray, vocab_size: int) -> np.ndarray:
    """[V + 1] p(piece), interpolated with 1 / V; 0 for the mark."""
    total, left = counts.sum(), _discounted(counts)
    probabilities = (left + (total - left.sum()) / vocab_size) / total
    probabilities[vocab_size] = 0
    return probabilities


def _interpolate(
    layer: _Layer, counts: np.ndarray, keep: np.ndarray, shorter: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(p of each n-gram, right for the kept ones; g of each n-gram of the layer below, whose p is `shorter`)."""
    contexts = len(shorter)
    totals = np.bincount(layer.parents, counts, contexts)
    left = _discounted(counts)
    used = np.bincount(layer.parents, np.where(keep, left, 0), contexts)
    backoff = np.divide(totals - used, totals, out=np.ones(contexts), where=totals > 0)
    return left / totals[layer.parents] + backoff[layer.parents] * shorter[layer.suffixes], backoff


def _trie(
    layers: Sequence[_Layer], kept: Sequence[np.ndarray], logs: Sequence[np.ndarray], backoffs: Sequence[np.ndarray],
    vocab_size: int,
) -> Ngrams:  # fmt: skip
    """The kept n-grams of all orders in one row."""
    sizes = np.array([keep.sum() for keep in kept])
    starts = np.cumsum(sizes) - sizes
    children = []
    for n in range(1, len(layers)):
        renumbered = np.cumsum(kept[n - 1]) - 1
        parents = renumbered[layers[n].parents[kept[n]]]
        children.append(starts[n] + np.searchsorted(parents, np.arange(sizes[n - 1])))
    return Ngrams(
        len(layers),
        vocab_size,
        np.concatenate([layer.pieces[keep] for layer, keep in zip(layers, kept, strict=True)]).astype(np.uint32),
        np.concatenate([log[keep] for log, keep in zip(logs, kept, strict=True)]).astype(np.float32),
        np.concatenate([b[keep] for b, keep in zip(backoffs, kept, strict=False)]).astype(np.float32),
        np.concatenate([*children, sizes.sum(keepdims=True)]).astype(np.int64),
    )


@kernel()
def _find(pieces: np.ndarray, first: int, end: int, piece: np.uint32) -> int:
    """Index of a piece in sorted pieces[first:end]; -1 where it is not."""
    stop = end
    while first < end:
        middle = (first + end) >> 1
        if pieces[middle] < piece:
            first = middle + 1
        else:
            end = middle
    return first if first < stop and pieces[first] == piece else -1


@kernel()
def _evaluate(
    ids: np.ndarray, offsets: np.ndarray, order: int, mark: int, pieces: np.ndarray, log_probabilities: np.ndarray,
    log_backoffs: np.ndarray, first_child: np.ndarray, means: np.ndarray, each: np.ndarray,
) -> None:  # fmt: skip
    contexts = np.empty(order, np.int64)  # [k]: node of the k pieces before, -1 where the model has none
    for document in range(offsets.size - 1):
        contexts[:] = -1
        contexts[1] = mark
        total = 0.0
        for i in range(offsets[document], offsets[document + 1]):
            value, is_known = 0.0, False
            # From the longest context down: contexts[k + 1] is free for the next piece when contexts[k] is looked at.
            for k in range(order - 1, 0, -1):
                node, child = contexts[k], -1
                if node >= 0:
                    child = _find(pieces, first_child[node], first_child[node + 1], ids[i])
                    if not is_known:
                        value += log_probabilities[child] if child >= 0 else log_backoffs[node]
                    is_known |= child >= 0
                if k + 1 < order:
                    contexts[k + 1] = child
            if not is_known:
                value += log_probabilities[ids[i]]
            contexts[1] = ids[i]
            each[i - offsets[0]] = value
            total += value
        size = offsets[document + 1] - offsets[document]
        means[document] = total / size if size else np.nan
