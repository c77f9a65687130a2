"""Which documents of a sample could be duplicates of which: enough to decide dedup again for any set of survivors.

`DedupIndex` compares a document with the kept ones before it, so its answer changes with the rules in front of it.
Every pair that shares an LSH band is therefore kept here with its similarity, whatever became of the two.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pretrainer.data.dedup.oddsketch import similarity
from pretrainer.data.dedup.ragged import Ragged
from pretrainer.data.dedup.sketches import Sketches

MIN_SIMILARITY = 0.5
"""Pairs below are left out; the threshold can be moved down to here."""
MAX_EARLIER = 64
"""Candidates of a document in each band, its earliest ones: a cluster of n pages must not cost n^2 pairs."""


class Pairs(NamedTuple):
    """N documents; the earlier candidates of document i are earlier[starts[i]:starts[i + 1]], ascending."""

    starts: np.ndarray  # [N + 1] int64
    earlier: np.ndarray  # [M] int64
    similarity: np.ndarray  # [M] float64

    def of(self, doc: int) -> tuple[np.ndarray, np.ndarray]:
        """(earlier candidates, their similarities) of a document."""
        which = slice(self.starts[doc], self.starts[doc + 1])
        return self.earlier[which], self.similarity[which]


def find_pairs(sketches: Sketches) -> Pairs:
    """All pairs of N documents in the order of the stream."""
    pairs = _candidates(sketches)
    shares = np.array([_similarity(sketches, earlier, later) for later, earlier in pairs], np.float64)
    later, earlier = np.array(pairs, np.int64).reshape(-1, 2).T
    close = shares >= MIN_SIMILARITY
    starts = np.searchsorted(later[close], np.arange(len(sketches) + 1))
    return Pairs(starts.astype(np.int64), earlier[close], shares[close])


def groups_of(hashes: np.ndarray) -> np.ndarray:
    """[N] int64 number of the first document with the same hash [N, 2]; -1 for a hash of zeros, which is none."""
    if len(hashes) == 0:
        return np.zeros(0, np.int64)
    _values, first, inverse = np.unique(hashes, axis=0, return_index=True, return_inverse=True)
    return np.where(hashes.any(axis=1), first[inverse.reshape(-1)], -1)


def _similarity(sketches: Sketches, left: int, right: int) -> float:
    rows, sizes = sketches.sketch, sketches.shingle_count
    assert rows is not None
    return float(similarity(rows[right], int(sizes[right]), rows[left], int(sizes[left])))


def _candidates(sketches: Sketches) -> list[tuple[int, int]]:
    """(later, earlier) of the pairs that share a band, each once, ascending."""
    if sketches.sketch is None:
        return []
    compared = np.flatnonzero(np.diff(sketches.sketch.offsets) > 0)
    columns = sketches.bands[compared].T
    return sorted({pair for keys in columns for pair in _pairs_of(compared, keys)})


def _pairs_of(docs: np.ndarray, keys: np.ndarray) -> list[tuple[int, int]]:
    """(later, earlier) of documents with equal keys."""
    order = np.argsort(keys, kind="stable")
    ordered, members = keys[order], docs[order].tolist()
    borders = [*np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])).tolist(), len(members)]
    runs = [members[a:b] for a, b in pairwise(borders) if b - a > 1]
    return [(later, earlier) for run in runs for n, later in enumerate(run) for earlier in run[: min(n, MAX_EARLIER)]]


def spread(rows: Ragged, at: np.ndarray, count: int) -> Ragged:
    """The rows as those of the documents `at` among `count`, the others empty."""
    lengths = np.zeros(count, np.int64)
    lengths[at] = np.diff(rows.offsets)
    return Ragged(rows.values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
