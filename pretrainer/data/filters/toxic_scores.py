"""The classifier of alt-profanity-check (English; MIT), computed by our own kernel: documents and their lines.

The package holds a TF-IDF vectorizer (15,442 words) and five linear SVMs with Platt's sigmoid, trained by Victor Zhou
on Wikipedia talk pages and tweets. The kernel gives the package's `predict_prob` to within 1e-9, for documents and
their lines at some five times the speed that the package has for documents alone. It knows words
and nothing of their order.

The two files are pickles, so they are opened only when their SHA-256 is one that is written here.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import io
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.characters import decode
from pretrainer.data.filters.normalise import as_large_string, from_utf8_buffers, utf8_buffers
from pretrainer.data.filters.toxic_words import letter_table
from pretrainer.data.hashing import FNV_OFFSET, FNV_PRIME, mix64
from pretrainer.errors import UserError

PACKAGE, VERSION = "alt-profanity-check", "1.9.1"
FILES = {
    "vectorizer.joblib": "19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831",
    "model.joblib": "aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b",
}
"""File -> SHA-256 in VERSION."""
_SLOTS = 1 << 16


class Classifier(NamedTuple):
    """V words, E SVMs; a word's number is found by its hash in an open-addressing table."""

    hashes: np.ndarray  # [_SLOTS] uint64, 0 where free
    numbers: np.ndarray  # [_SLOTS] int32
    idf: np.ndarray  # [V] float64
    weights: np.ndarray  # [V, E] float64
    platt: np.ndarray  # [3, E] float64: intercept of the SVM, a and b of 1 / (1 + exp(a x + b))


class Scores(NamedTuple):
    """Of N documents; `line` and `removed` have one entry per line, lines ending at LF alone."""

    document: np.ndarray  # [N] float64: of the whole text as one
    worst_line: np.ndarray  # [N] float64: highest of its lines with words, NaN where it has none
    lines: np.ndarray  # [N] int64: lines with words
    removed: np.ndarray  # [N] int64: of them above the limit
    is_removed: np.ndarray  # [lines of all texts] bool


@functools.cache
def load_classifier() -> Classifier:
    """From the installed package. UserError where it is missing or its files are not those of VERSION."""
    vectorizer, model = (_load(name) for name in FILES)
    parts = [(one.estimator, one.calibrators[0]) for one in model.calibrated_classifiers_]
    weights = np.stack([svm.coef_[0] for svm, _ in parts], axis=1)
    platt = np.array([[svm.intercept_[0], sigmoid.a_, sigmoid.b_] for svm, sigmoid in parts]).T
    words = sorted(vectorizer.vocabulary_, key=vectorizer.vocabulary_.__getitem__)
    data, offsets = utf8_buffers(pa.array(words, pa.large_string()))
    hashes, numbers = np.zeros(_SLOTS, np.uint64), np.zeros(_SLOTS, np.int32)
    _fill(data, offsets, letter_table(False), hashes, numbers)
    tables = (np.ascontiguousarray(array, np.float64) for array in (vectorizer.idf_, weights, platt))
    return Classifier(hashes, numbers, *tables)


def _load(name: str) -> Any:
    spec = importlib.util.find_spec("profanity_check")  # not imported: that would unpickle before the check
    if spec is None or spec.origin is None:
        raise UserError(f"data.toxicity.classifier needs {PACKAGE}: pip install {PACKAGE}=={VERSION}")
    content = (Path(spec.origin).parent / "data" / name).read_bytes()
    return _checked(name, content)


def _checked(name: str, content: bytes) -> Any:
    digest = hashlib.sha256(content).hexdigest()
    if digest != FILES[name]:
        found = importlib.metadata.version(PACKAGE)
        raise UserError(
            f"{name} of {PACKAGE} {found} has SHA-256 {digest}, not that of version {VERSION}: it is not opened. "
            f"pip install --force-reinstall {PACKAGE}=={VERSION}"
        )
    return joblib.load(io.BytesIO(content))


def score_texts(texts: pa.Array, chosen: np.ndarray, max_line_score: float = np.inf) -> Scores:
    """Scores of documents and lines, and which lines are above the limit. chosen [N] bool: others get NaN and 0."""
    data, offsets = utf8_buffers(_with_simple_case(texts))
    count = len(offsets) - 1
    feeds = int(np.count_nonzero(data[offsets[0] : offsets[-1]] == 0x0A))
    out = Scores(
        np.full(count, np.nan), np.full(count, np.nan), np.zeros(count, np.int64), np.zeros(count, np.int64),
        np.zeros(feeds + count, bool),
    )  # fmt: skip
    _score(data, offsets, letter_table(False), *load_classifier(), chosen, max_line_score, *out)
    return out


def _with_simple_case(texts: pa.Array) -> pa.Array:
    """Texts with U+0130 or a capital sigma in lower case, the others as they are: in lower case the one is two
    characters and the other depends on where it stands, which `letter_table` cannot say. Lines stay the same ones."""
    array = as_large_string(texts)
    odd = pc.or_(pc.match_substring(array, "\u0130"), pc.match_substring(array, "\u03a3"))
    if not pc.any(odd).as_py():
        return array
    lower = [text.lower() for text in array.filter(odd).to_pylist()]
    return pc.replace_with_mask(array, odd, pa.array(lower, pa.large_string()))


def without_lines(texts: pa.Array, is_removed: np.ndarray) -> pa.Array:
    """The texts without the lines that are marked."""
    data, offsets = utf8_buffers(texts)
    kept, kept_offsets = np.empty(offsets[-1] - offsets[0], np.uint8), np.zeros_like(offsets)
    _copy(data, offsets, is_removed, kept, kept_offsets)
    return from_utf8_buffers(kept, kept_offsets)


# ---------------------------------------------------------------------------------------------------------- kernels


@kernel()
def _slot(word_hash: np.uint64, hashes: np.ndarray) -> int:
    """Where the hash stands or would stand."""
    slot = np.int64(word_hash & np.uint64(hashes.size - 1))
    while hashes[slot] != 0 and hashes[slot] != word_hash:
        slot = (slot + 1) & (hashes.size - 1)
    return int(slot)


@kernel()
def _fill(data: np.ndarray, offsets: np.ndarray, table: np.ndarray, hashes: np.ndarray, numbers: np.ndarray) -> None:
    """Enter every word of the vocabulary under its hash."""
    for word in range(offsets.size - 1):
        i, word_hash = offsets[word], FNV_OFFSET
        while i < offsets[word + 1]:
            code_point, size = decode(data, i)
            word_hash = (word_hash ^ np.uint64(table[code_point])) * FNV_PRIME
            i += size
        slot = _slot(mix64(word_hash), hashes)
        hashes[slot], numbers[slot] = mix64(word_hash), word


@kernel()
def _add(number: int, counts: np.ndarray, met: np.ndarray, size: int) -> int:
    """Count a word; met[:size] are the words with a count. Returns the new size."""
    if counts[number] == 0:
        met[size] = number
        size += 1
    counts[number] += 1
    return size


@kernel()
def _probability(counts: np.ndarray, met: np.ndarray, idf: np.ndarray, weights: np.ndarray, platt: np.ndarray) -> float:
    """Mean of the calibrated SVMs for the counts of the words met, which it sets back to 0."""
    squares, dots = 0.0, np.zeros(platt.shape[1])
    for number in met:
        value = counts[number] * idf[number]
        squares += value * value
        for svm in range(dots.size):
            dots[svm] += value * weights[number, svm]
        counts[number] = 0
    norm, total = np.sqrt(squares) if squares else 1.0, 0.0
    for svm in range(dots.size):
        total += 1 / (1 + np.exp(platt[1, svm] * (dots[svm] / norm + platt[0, svm]) + platt[2, svm]))
    return total / dots.size


@kernel()
def _score(
    data: np.ndarray, offsets: np.ndarray, table: np.ndarray, hashes: np.ndarray, numbers: np.ndarray, idf: np.ndarray,
    weights: np.ndarray, platt: np.ndarray, chosen: np.ndarray, limit: float, document_score: np.ndarray,
    worst: np.ndarray, lines: np.ndarray, removed: np.ndarray, is_removed: np.ndarray,
) -> None:  # fmt: skip
    """The arrays from document_score on are written: those of Scores."""
    counts, met = np.zeros(idf.size), np.empty(idf.size, np.int32)
    line_counts, line_met = np.zeros(idf.size), np.empty(idf.size, np.int32)
    line = 0
    for document in range(offsets.size - 1):
        i, end, size_met = offsets[document], offsets[document + 1], 0
        word_hash, chars, words, line_size = FNV_OFFSET, 0, 0, 0
        while i <= end:
            code_point, size = decode(data, i) if i < end else (np.int64(0x0A), 1)
            letter = table[code_point]
            if letter:
                word_hash = (word_hash ^ np.uint64(letter)) * FNV_PRIME
                chars += 1
            else:
                if chars >= 2 and chosen[document]:  # the package's pattern of a word
                    words += 1
                    slot = _slot(mix64(word_hash), hashes)
                    if hashes[slot]:
                        line_size = _add(numbers[slot], line_counts, line_met, line_size)
                        size_met = _add(numbers[slot], counts, met, size_met)
                word_hash, chars = FNV_OFFSET, 0
            if code_point == 0x0A:
                if words:
                    score = _probability(line_counts, line_met[:line_size], idf, weights, platt)
                    lines[document] += 1
                    worst[document] = score if np.isnan(worst[document]) else max(worst[document], score)
                    is_removed[line] = score > limit
                    removed[document] += is_removed[line]
                line, words, line_size = line + 1, 0, 0
            i += size
        if chosen[document]:
            document_score[document] = _probability(counts, met[:size_met], idf, weights, platt)


@kernel()
def _copy(
    data: np.ndarray, offsets: np.ndarray, is_removed: np.ndarray, out: np.ndarray, out_offsets: np.ndarray
) -> None:
    """Lines that are not removed, with one LF between two."""
    line, at = 0, 0
    for document in range(offsets.size - 1):
        first, begun = offsets[document], False
        for i in range(offsets[document], offsets[document + 1] + 1):
            if i < offsets[document + 1] and data[i] != 0x0A:
                continue
            if not is_removed[line]:
                if begun:
                    out[at] = 0x0A
                    at += 1
                out[at : at + i - first] = data[first:i]
                at, begun = at + i - first, True
            line, first = line + 1, i + 1
        out_offsets[document + 1] = at
