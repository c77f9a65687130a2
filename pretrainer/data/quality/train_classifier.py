"""Training of the quality classifier: logistic regression on hashed n-grams, Platt's calibration, an honest report.

Each set is cut in three by a hash: `held_out` of it is never fitted to, and half of that calibrates, the other half is
what AUC and calibration error are measured on. The keep-rate curve is of both halves. Exact copies are in no two parts,
because `corpus` leaves one of each; near-copies can be, so dedup the sets first if they hold many.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_matrix
from sklearn.linear_model import SGDClassifier

from pretrainer.data.quality.classifier import Classifier, calibrated, quantiles
from pretrainer.data.quality.corpus import Corpus
from pretrainer.data.quality.evaluation import auc_interval, balanced_weights, calibration_error
from pretrainer.data.quality.features import FeatureScheme, feature_rows, margins
from pretrainer.errors import UserError

MIN_DOCUMENTS = 20
EPOCHS = 20
INVERSE_PENALTY = 50
"""C of the L2 penalty |w|^2 / (2 C N): 10 to 1000 differ by .003 in AUC when words are told from shuffled words."""


class Parts(NamedTuple):
    """One class, cut by hash."""

    train: pa.Array
    calibration: pa.Array
    test: pa.Array


def train(positive: Corpus, negative: Corpus, scheme: FeatureScheme, held_out: float, seed: int) -> Classifier:
    """The same corpora, scheme and seed give the same bytes; UserError if a corpus is too small."""
    good, bad = cut("positive", positive, held_out), cut("negative", negative, held_out)
    weights = fit(good.train, bad.train, scheme, seed)
    good_margins, bad_margins = ([margins(part, scheme, weights) for part in parts[1:]] for parts in (good, bad))
    slope, offset = platt(*_labelled(good_margins[0], bad_margins[0]))
    good_scores = [calibrated(margin, slope, offset) for margin in good_margins]
    bad_scores = [calibrated(margin, slope, offset) for margin in bad_margins]
    counts = {
        f"{name}_{part}": len(getattr(parts, part))
        for name, parts in (("positive", good), ("negative", bad))
        for part in Parts._fields
    }
    return Classifier(
        scheme,
        weights,
        slope,
        offset,
        quantiles(np.concatenate(bad_scores)),
        quantiles(np.concatenate(good_scores)),
        {**counts, "seed": seed, "held_out": held_out, **evaluate(good_scores[1], bad_scores[1], seed)},
    )


def cut(name: str, corpus: Corpus, held_out: float) -> Parts:
    """A corpus is in the order of hashes, so slices are samples; the calibration and test parts are equally long."""
    count = len(corpus.texts)
    if count < MIN_DOCUMENTS:
        raise UserError(
            f"--{name}: {count} different documents that are not in the other set are too few: give at least "
            f"{MIN_DOCUMENTS}, better some thousand"
        )
    half = max(2, round(count * held_out / 2))
    return Parts(corpus.texts[2 * half :], corpus.texts[:half], corpus.texts[half : 2 * half])


def fit(positive: pa.Array, negative: pa.Array, scheme: FeatureScheme, seed: int) -> np.ndarray:
    """Weights [B] float32 of averaged stochastic gradient descent; both classes weigh the same.

    One core in one fixed order, so that neither threads nor BLAS decide about bits. The intercept is left to the
    calibration.
    """
    texts = pa.concat_arrays([positive, negative])
    values, indices, indptr = feature_rows(texts, scheme)
    penalty = 1 / (INVERSE_PENALTY * len(texts))
    rows = csr_matrix((values.astype(np.float64), indices, indptr), shape=(len(texts), scheme.buckets))
    labels = np.repeat([1, 0], [len(positive), len(negative)])
    model: Any = SGDClassifier(
        loss="log_loss", alpha=penalty, max_iter=EPOCHS, tol=None, average=True, class_weight="balanced",
        random_state=seed,
    )  # fmt: skip
    model.fit(rows, labels)
    return model.coef_[0].astype(np.float32)


def _labelled(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(values of both, labels 1 and 0)."""
    return np.concatenate([positive, negative]), np.repeat([1, 0], [len(positive), len(negative)])


def platt(margin: np.ndarray, labels: np.ndarray, steps: int = 100) -> tuple[float, float]:
    """(slope, offset) of the logistic curve over margins [N], by Newton's method on Platt's smoothed targets.

    The targets are (n + 1) / (n + 2) and 1 / (n + 2) instead of 1 and 0 (Platt 1999), so separable sets have a finite
    slope. Departure: both classes weigh the same.
    """
    known = ~np.isnan(margin)
    margin, labels = margin[known], labels[known]
    counts = np.bincount(labels, minlength=2)
    targets = np.where(labels == 1, (counts[1] + 1) / (counts[1] + 2), 1 / (counts[0] + 2))
    weights, scale = balanced_weights(labels), float(np.abs(margin).max()) or 1.0
    columns = np.stack([margin / scale, np.ones_like(margin)])  # [2, N]
    solution = np.zeros(2)
    for _ in range(steps):
        chance = 1 / (1 + np.exp(-(solution @ columns)))
        gradient = columns @ (weights * (chance - targets))
        curvature = (columns * (weights * chance * (1 - chance))) @ columns.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        solution = solution - step * min(1.0, 4.0 / float(np.abs(step).max() or 1.0))
    return float(solution[0] / scale), float(solution[1])


def evaluate(positive: np.ndarray, negative: np.ndarray, seed: int) -> dict[str, float]:
    """AUC with its interval, and calibration error, of the scores of the test part."""
    area = auc_interval(positive, negative, seed)
    error = calibration_error(*_labelled(positive, negative))
    return {"auc": area.value, "auc_low": area.low, "auc_high": area.high, "calibration_error": error}
