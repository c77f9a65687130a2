"""What a score is worth: area under the ROC curve with an interval, calibration error, and the keep-rate curve.

Everywhere the two classes count alike, whatever their sizes are. numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BOOTSTRAP_SAMPLES = 500
CALIBRATION_BINS = 10


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive document [P] scores higher than a negative one [M], ties counting half."""
    return _weighted_auc(*_levels(positive, negative))


def auc_interval(positive: np.ndarray, negative: np.ndarray, seed: int) -> Interval:
    """AUC with its 95 % percentile bootstrap interval: both classes drawn again with replacement."""
    generator = np.random.default_rng(seed)
    at_positive, at_negative, levels = _level_numbers(positive, negative)
    values = [
        _weighted_auc(_redrawn(at_positive, levels, generator), _redrawn(at_negative, levels, generator))
        for _ in range(BOOTSTRAP_SAMPLES)
    ]
    low, high = np.quantile(values, (0.025, 0.975))
    return Interval(auc(positive, negative), float(low), float(high))


def _level_numbers(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """(number of each positive's score among the different scores, the same of the negatives, different scores)."""
    values, numbers = np.unique(np.concatenate([positive, negative]), return_inverse=True)
    return numbers[: len(positive)], numbers[len(positive) :], len(values)


def _levels(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at_positive, at_negative, levels = _level_numbers(positive, negative)
    return np.bincount(at_positive, minlength=levels), np.bincount(at_negative, minlength=levels)


def _redrawn(numbers: np.ndarray, levels: int, generator: np.random.Generator) -> np.ndarray:
    return np.bincount(numbers[generator.integers(0, len(numbers), len(numbers))], minlength=levels)


def _weighted_auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """From how many documents of either class have each score, scores ascending."""
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / (positives.sum() * negatives.sum()))


def calibration_error(scores: np.ndarray, labels: np.ndarray) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599) over 10 equal bins of scores [N] in [0, 1]."""
    weights = balanced_weights(labels)
    bins = np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights * (scores - labels), minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / weights.sum())


def balanced_weights(labels: np.ndarray) -> np.ndarray:
    """[N] so that both classes (labels 0 and 1) weigh the same and all together N."""
    counts = np.bincount(labels, minlength=2)
    return (len(labels) / (2 * counts))[labels]


def share_kept(scores: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Share of the scores [N] that are at least each threshold [T]."""
    return 1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores)
