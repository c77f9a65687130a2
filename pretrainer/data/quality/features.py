"""Hashed n-grams of words, and of characters if wished, in one pass over UTF-8 bytes without a Python object per token.

**Token**: a run of letters and digits as in `dedup.minhash` (a character of the scripts written without spaces is one
by itself), or any other character that is no ASCII blank or control character: punctuation says much about quality.
ASCII letters are lower-case and every ASCII digit counts as 0, so that years and prices share a feature (as in CCNet).

**Feature**: 1 to `word_ngrams` consecutive tokens, and `char_ngram` consecutive characters, runs of ASCII blanks taken
as one (0: none). A polynomial of the 64-bit hashes, finalized, and its upper bits are the bucket (Weinberger et al.
2009, arXiv:0902.2206; without their random sign).

**Value**: sqrt(c / n), c of n occurrences in the bucket. The row has L2 norm 1, and a word that stands everywhere
does not drown the others, as with log counts; square roots are the same bits on every machine, logarithms are not.

A document is represented by its first MAX_READ_CHARS characters.

Legend: N documents, B = 2^bucket_bits buckets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.dedup.minhash import _LETTER, _SEPARATOR, _character, character_kinds
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.data.hashing import FNV_OFFSET, FNV_PRIME, POLYNOMIAL_BASE, mix64
from pretrainer.errors import require

MAX_READ_CHARS = 200_000
SLICE_BYTES = 8 * 2**20
"""Text whose rows are made at a time."""
_CHARACTER_SEED = np.uint64(64)


@dataclass(frozen=True)
class FeatureScheme:
    """Everything that a document's features depend on besides its text."""

    word_ngrams: int = 2
    char_ngram: int = 0
    bucket_bits: int = 18

    def __post_init__(self) -> None:
        require(0 <= self.word_ngrams <= 5, "word_ngrams", self.word_ngrams, "use 0 to 5")
        require(self.char_ngram in (0, 2, 3, 4, 5, 6), "char_ngram", self.char_ngram, "use 2 to 6, or 0 for none")
        require(self.word_ngrams + self.char_ngram > 0, "word_ngrams", 0, "use 1 or more, or give char_ngram")
        require(10 <= self.bucket_bits <= 24, "bucket_bits", self.bucket_bits, "use 10 to 24 (18 to 20 are usual)")

    @property
    def id(self) -> str:
        """Names the scheme and its version; weights of two schemes never mix."""
        return (
            f"hashed1-words{self.word_ngrams}-chars{self.char_ngram}-bits{self.bucket_bits}"
            f"-max{MAX_READ_CHARS}-sqrt-l2"
        )

    @property
    def buckets(self) -> int:
        return 1 << self.bucket_bits


@kernel()
def _fold(byte: np.uint8) -> np.uint64:
    """The byte that is hashed: ASCII letters in lower case, digits as 0."""
    if np.uint8(byte - np.uint8(0x41)) < np.uint8(26):
        byte |= np.uint8(0x20)
    elif np.uint8(byte - np.uint8(0x30)) < np.uint8(10):
        byte = np.uint8(0x30)
    return np.uint64(byte)


@kernel()
def _tokens(data: np.ndarray, start: int, end: int, kinds: np.ndarray, out: np.ndarray) -> int:
    """Write the hash of each token of data[start:end] to out; returns how many there are."""
    count = chars = 0
    word, in_word, previous = FNV_OFFSET, False, np.uint8(_SEPARATOR)
    i = start
    while i < end and chars < MAX_READ_CHARS:
        lead = data[i]
        # ASCII is decided here: a call per byte is several times slower.
        if lead < 0x80:
            size, kind = 1, kinds[lead]
        else:
            size, kind = _character(data, i, kinds)
        if in_word and (kind != _LETTER or previous != _LETTER):
            out[count] = mix64(word)
            count += 1
            word, in_word = FNV_OFFSET, False
        if lead > 0x20 and lead != 0x7F:
            for j in range(i, i + size):
                word = (word ^ _fold(data[j])) * FNV_PRIME
            in_word = True
        previous = kind
        chars += 1
        i += size
    if in_word:
        out[count] = mix64(word)
        count += 1
    return count


@kernel()
def _characters(data: np.ndarray, start: int, end: int, out: np.ndarray) -> int:
    """Write the hash of each character of data[start:end] to out, of a run of ASCII blanks one; returns how many."""
    count = chars = 0
    i, in_blanks = start, False
    while i < end and chars < MAX_READ_CHARS:
        lead = data[i]
        size = 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
        is_blank = lead <= 0x20 or lead == 0x7F
        if not (is_blank and in_blanks):
            h = FNV_OFFSET
            for j in range(i, i + size):
                h = (h ^ (np.uint64(0x20) if is_blank else _fold(data[j]))) * FNV_PRIME
            out[count] = mix64(h)
            count += 1
        in_blanks = is_blank
        chars += 1
        i += size
    return count


@kernel()
def _count_ngrams(
    hashes: np.ndarray, size: int, n: int, seed: np.uint64, shift: np.uint64, counts: np.ndarray, touched: np.ndarray,
    used: int,
) -> int:  # fmt: skip
    """Count each n consecutive hashes in its bucket; buckets that were 0 are written behind touched[:used]."""
    leaving = np.uint64(1)  # base^n, the weight of a hash when it leaves the window
    for _ in range(n):
        leaving *= POLYNOMIAL_BASE
    window = np.uint64(0)
    for i in range(size):
        window = window * POLYNOMIAL_BASE + hashes[i]
        if i >= n:
            window -= leaving * hashes[i - n]
        if i >= n - 1:
            bucket = np.int64(mix64(window + seed) >> shift)
            if counts[bucket] == 0:
                touched[used] = bucket
                used += 1
            counts[bucket] += 1
    return used


@kernel()
def _count_document(
    data: np.ndarray, start: int, end: int, kinds: np.ndarray, words: int, chars: int, hashes: np.ndarray,
    counts: np.ndarray, touched: np.ndarray,
) -> tuple[int, int]:  # fmt: skip
    """(buckets in touched, occurrences in all) of one document; `counts` must be all 0 before."""
    shift, bits = np.uint64(64), counts.size
    while bits > 1:
        shift, bits = shift - np.uint64(1), bits >> 1
    used = total = 0
    if words:
        size = _tokens(data, start, end, kinds, hashes)
        for n in range(1, words + 1):
            used = _count_ngrams(hashes, size, n, np.uint64(n), shift, counts, touched, used)
            total += max(0, size - n + 1)
    if chars:
        size = _characters(data, start, end, hashes)
        seed = _CHARACTER_SEED + np.uint64(chars)
        used = _count_ngrams(hashes, size, chars, seed, shift, counts, touched, used)
        total += max(0, size - chars + 1)
    return used, total


@kernel()
def _margins(
    data: np.ndarray, offsets: np.ndarray, kinds: np.ndarray, words: int, chars: int, hashes: np.ndarray,
    counts: np.ndarray, touched: np.ndarray, weights: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    for document in range(offsets.size - 1):
        used, total = _count_document(
            data, offsets[document], offsets[document + 1], kinds, words, chars, hashes, counts, touched
        )
        value = 0.0
        for bucket in touched[:used]:
            value += np.float64(weights[bucket]) * np.sqrt(np.float64(counts[bucket]))
            counts[bucket] = 0
        out[document] = value / np.sqrt(np.float64(total)) if total else np.nan


@kernel()
def _rows(
    data: np.ndarray, offsets: np.ndarray, kinds: np.ndarray, words: int, chars: int, hashes: np.ndarray,
    counts: np.ndarray, touched: np.ndarray, ends: np.ndarray, indices: np.ndarray, values: np.ndarray,
) -> None:  # fmt: skip
    at = 0
    for document in range(offsets.size - 1):
        used, total = _count_document(
            data, offsets[document], offsets[document + 1], kinds, words, chars, hashes, counts, touched
        )
        for bucket in np.sort(touched[:used]):
            indices[at], values[at] = bucket, np.sqrt(counts[bucket] / np.float64(total))
            counts[bucket] = 0
            at += 1
        ends[document] = at


def _scratch(offsets: np.ndarray, scheme: FeatureScheme) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(hashes, counts [B], touched) with room for the longest document: a token needs a byte."""
    longest = int(min(np.diff(offsets).max(initial=1), MAX_READ_CHARS))
    room = min(longest * _ngrams_per_token(scheme), scheme.buckets)
    return np.empty(longest, np.uint64), np.zeros(scheme.buckets, np.int32), np.empty(room, np.int64)


def _ngrams_per_token(scheme: FeatureScheme) -> int:
    return scheme.word_ngrams + (scheme.char_ngram > 0)


def margins(texts: pa.Array | pa.ChunkedArray, scheme: FeatureScheme, weights: np.ndarray) -> np.ndarray:
    """Features of each document times weights [B] float32: [N] float64, NaN for one without features.

    Each is the same bits whatever the other documents are.
    """
    data, offsets = utf8_buffers(texts)
    out = np.zeros(len(offsets) - 1)
    _margins(data, offsets, character_kinds(), scheme.word_ngrams, scheme.char_ngram, *_scratch(offsets, scheme),
             weights, out)  # fmt: skip
    return out


def feature_rows(
    texts: pa.Array | pa.ChunkedArray, scheme: FeatureScheme
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(values float32, indices int32, indptr [N + 1] int64): the features as the parts of a scipy CSR matrix [N, B]."""
    data, offsets = utf8_buffers(texts)
    parts = [_slice_rows(data, offsets[a : b + 1], scheme) for a, b in _slices(offsets)]
    sizes = np.concatenate([np.zeros(1, np.int64), *[np.diff(ends, prepend=0) for ends, _, _ in parts]])
    indices = np.concatenate([np.zeros(0, np.int32), *[part[1] for part in parts]])
    values = np.concatenate([np.zeros(0, np.float32), *[part[2] for part in parts]])
    return values, indices, np.cumsum(sizes)


def _slices(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of documents of about SLICE_BYTES."""
    first = 0
    while first < len(offsets) - 1:
        end = max(first + 1, int(np.searchsorted(offsets, offsets[first] + SLICE_BYTES, side="right")) - 1)
        yield first, end
        first = end


def _slice_rows(
    data: np.ndarray, offsets: np.ndarray, scheme: FeatureScheme
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ends [n], indices, values) of some documents."""
    room = int(offsets[-1] - offsets[0]) * _ngrams_per_token(scheme)
    ends, indices = np.zeros(len(offsets) - 1, np.int64), np.empty(room, np.int32)
    values = np.empty(room, np.float32)
    _rows(data, offsets, character_kinds(), scheme.word_ngrams, scheme.char_ngram, *_scratch(offsets, scheme),
          ends, indices, values)  # fmt: skip
    used = ends[-1] if len(ends) else 0
    return ends, indices[:used].copy(), values[:used].copy()
