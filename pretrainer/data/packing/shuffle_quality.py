"""How well sequences are shuffled: how the sequences of one document, or of one shard, lie in the training order.

Sequences are shuffled inside a pack window only, so parts of a long document and documents of one shard stay nearer to
each other than in a full permutation of the corpus. How far that is from a full permutation is what slows stochastic
gradient descent down (Meng et al. 2019, "Convergence analysis of distributed stochastic gradient descent with random
shuffling"), so it is measured instead of assumed. All sums add up over windows.

Legend: N sequences, c sequences of a group (of a document or of a shard).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spread:
    """How the groups of one kind lie in an order of sequences; a group alone in one sequence adds nothing."""

    neighbours: int = 0  # adjacent sequences of the same group
    same_pairs: int = 0  # pairs of sequences of the same group, wherever they are: sum of c (c - 1) / 2
    distance: int = 0  # places from each sequence to the next one of its group, summed
    successors: int = 0  # how many such distances: sum of c - 1
    full_distance: float = 0.0  # sum of (c - 1) / (c + 1): times N + 1 what a full permutation has for `distance`


@dataclass(frozen=True)
class ShuffleQuality:
    """Sums over windows of one order of sequences; shares and distances follow from them.

    In a full random permutation of N sequences two neighbours are of one group with probability
    sum of c (c - 1) / (N (N - 1)), and a group of c has its successive sequences (N + 1) / (c + 1) places apart.
    """

    sequences: int = 0  # N
    adjacent: int = 0  # neighbours compared
    documents: Spread = Spread()
    shards: Spread = Spread()

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ShuffleQuality:
        """Inverse of dataclasses.asdict."""
        return cls(raw["sequences"], raw["adjacent"], Spread(**raw["documents"]), Spread(**raw["shards"]))

    @property
    def same_document(self) -> float:
        """Share of neighbouring sequences that come from the same document."""
        return self.documents.neighbours / max(1, self.adjacent)

    @property
    def same_document_full(self) -> float:
        """What a full permutation of the N sequences is expected to have for `same_document`."""
        return _same_in_full_permutation(self.documents, self.sequences)

    @property
    def same_shard(self) -> float:
        """Share of neighbouring sequences that come from the same shard."""
        return self.shards.neighbours / max(1, self.adjacent)

    @property
    def same_shard_full(self) -> float:
        """What a full permutation is expected to have for `same_shard`, when no shard stands in several windows."""
        return _same_in_full_permutation(self.shards, self.sequences)

    @property
    def document_distance(self) -> float:
        """Distance between successive sequences of a document, as a share of a full permutation's; 1 is ideal."""
        return _distance(self.documents, self.sequences)

    @property
    def shard_distance(self) -> float:
        """Distance between successive sequences of a shard, as a share of a full permutation's; 1 is ideal."""
        return _distance(self.shards, self.sequences)

    def __str__(self) -> str:
        """One printable row; each number beside a full permutation's."""
        return (
            f"{self.sequences:,} sequences, neighbours of one document {self.same_document:.3%} "
            f"(full permutation {self.same_document_full:.3%}), of one shard {self.same_shard:.3%} "
            f"({self.same_shard_full:.3%}), distance inside a document {self.document_distance:.3f} and inside a shard "
            f"{self.shard_distance:.3f} of a full permutation's"
        )


def shuffle_quality(documents: np.ndarray, shards: np.ndarray) -> ShuffleQuality:
    """Quality of one order, for the document and the shard of each sequence, [N] int64 each, in that order."""
    return ShuffleQuality(len(documents), max(0, len(documents) - 1), _spread(documents), _spread(shards))


def add_up(parts: Iterable[ShuffleQuality]) -> ShuffleQuality:
    """The quality of orders one after another, neighbours across their borders left out.

    Exact for groups that stand in one part only, as a document stands in one pack window of an epoch.
    """
    kept = list(parts)
    return ShuffleQuality(
        sum(p.sequences for p in kept),
        sum(p.adjacent for p in kept),
        _sum([p.documents for p in kept]),
        _sum([p.shards for p in kept]),
    )


def _spread(groups: np.ndarray) -> Spread:
    order = np.argsort(groups, kind="stable")  # places, by group and then ascending
    same = np.diff(groups[order]) == 0
    counts, times = np.unique(np.unique(groups, return_counts=True)[1], return_counts=True)
    return Spread(
        neighbours=int(np.count_nonzero(np.diff(groups) == 0)),
        same_pairs=int((times * (counts * (counts - 1) // 2)).sum()),
        distance=int(np.diff(order)[same].sum()),
        successors=int(np.count_nonzero(same)),
        full_distance=math.fsum(times * ((counts - 1) / (counts + 1))),
    )


def _sum(spreads: list[Spread]) -> Spread:
    return Spread(
        sum(s.neighbours for s in spreads),
        sum(s.same_pairs for s in spreads),
        sum(s.distance for s in spreads),
        sum(s.successors for s in spreads),
        math.fsum(s.full_distance for s in spreads),
    )


def _same_in_full_permutation(spread: Spread, sequences: int) -> float:
    return 2 * spread.same_pairs / max(1, sequences * (sequences - 1))


def _distance(spread: Spread, sequences: int) -> float:
    return spread.distance / ((sequences + 1) * spread.full_distance) if spread.successors else 1.0


def same_group_share(sizes: np.ndarray) -> float:
    """Chance that two sequences drawn at random are of one group, for groups that hold `sizes` [groups] of the corpus.

    The limit of `same_shard_full` for many sequences.
    """
    shares = sizes / max(1, sizes.sum())
    return math.fsum(shares * shares)
