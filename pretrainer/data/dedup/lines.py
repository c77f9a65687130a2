"""Lines and paragraphs that many documents share: boilerplate, removed from later documents.

Wenzek et al. 2020 (CCNet, section 3.1) remove every paragraph of a shard that has been seen before; RefinedWeb
(Penedo et al. 2023) removes lines by rules and repeated spans by a suffix array. Here: a line (or a paragraph, text
between empty lines) of at least `min_chars` characters that occurred in at least `max_documents` documents kept earlier
is removed; a document of whose characters less than `min_share_left` is left is dropped. Two documents are needed at
least before a line counts as boilerplate, so no line disappears from the corpus: its first `max_documents` documents
keep it. A document counts once however often it repeats a line, and counts as it arrived, removed lines included.

Compared are lines without white space at their ends, runs of blanks as one, ASCII letters in lower case (CCNet also
drops digits and punctuation, which would merge tables of numbers).

Hashes (64 bit) are made in the parallel stage. The index holds, for each different line, a count until it reaches
`max_documents`, and from then on the position at which it did; a line is boilerplate for the documents behind that
position alone, so a replay sees what the first pass saw. Memory: 20 bytes per slot at a load of 1/2 to 3/4, so 27 to
40 bytes per different line, and 8 bytes per line of a kept document in its segment.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pretrainer.config import DedupConfig
from pretrainer.data.compiled import kernel
from pretrainer.data.dedup.ragged import Ragged
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.data.hashing import FNV_OFFSET, FNV_PRIME, mix64


@kernel()
def _hash_lines(
    data: np.ndarray, offsets: np.ndarray, paragraphs: bool, min_chars: int,
    hashes: np.ndarray, bounds: np.ndarray, ends: np.ndarray,
) -> int:
    """Write hash and byte range (line end included, relative to its text) of each long enough line of N texts."""
    total = 0
    for d in range(offsets.size - 1):
        start, end = offsets[d], offsets[d + 1]
        i = start
        while i < end:
            first, h, chars, blank = i, FNV_OFFSET, 0, False
            newlines = 0
            while i < end:
                byte = data[i]
                if byte == 0x0A:
                    newlines += 1
                elif newlines > (1 if paragraphs else 0):
                    break
                elif byte > 0x20:
                    newlines = 0
                if byte <= 0x20:
                    blank = True
                else:
                    if blank and chars:
                        h = (h ^ np.uint64(0x20)) * FNV_PRIME
                        chars += 1
                    blank = False
                    if np.uint8(byte - np.uint8(0x41)) < np.uint8(26):
                        byte |= np.uint8(0x20)
                    h = (h ^ np.uint64(byte)) * FNV_PRIME
                    chars += byte & 0xC0 != 0x80
                i += 1
            if chars >= min_chars:
                hashes[total] = mix64(h) | np.uint64(1)
                bounds[total, 0], bounds[total, 1] = first - start, i - start
                total += 1
        ends[d + 1] = total
    return total


class Lines(NamedTuple):
    """The long enough lines of N texts."""

    hashes: Ragged  # uint64
    bounds: Ragged  # int64, first byte and byte behind the line end of each line: two values per line


def hash_lines(texts: pa.Array | pa.ChunkedArray, config: DedupConfig) -> Lines:
    """Hashes and byte ranges of the lines of N texts."""
    data, offsets = utf8_buffers(texts)
    room = int(offsets[-1] - offsets[0]) // max(1, config.lines.min_chars) + 1
    hashes, bounds = np.empty(room, np.uint64), np.empty((room, 2), np.int64)
    ends = np.zeros(offsets.size, np.int64)
    paragraphs = config.lines.unit == "paragraph"
    total = _hash_lines(data, offsets, paragraphs, config.lines.min_chars, hashes, bounds, ends)
    return Lines(Ragged(hashes[:total].copy(), ends), Ragged(bounds[:total].ravel(), 2 * ends))


@kernel()
def _slot(keys: np.ndarray, key: np.uint64) -> int:
    slot: Any = np.int64(((key >> np.uint64(32)) * np.uint64(keys.size)) >> np.uint64(32))
    while keys[slot] != 0 and keys[slot] != key:
        slot += 1
        if slot == keys.size:
            slot = 0
    return slot


@kernel()
def _common(
    keys: np.ndarray, reached: np.ndarray, hashes: np.ndarray, position: int, common: np.ndarray
) -> None:
    for i in range(hashes.size):
        slot = _slot(keys, hashes[i])
        common[i] = keys[slot] != 0 and reached[slot] < position


@kernel()
def _count(
    keys: np.ndarray, counts: np.ndarray, reached: np.ndarray, hashes: np.ndarray, position: int, needed: int
) -> int:
    """Count each different hash (sorted) once; returns how many are new."""
    new = 0
    for i in range(hashes.size):
        if i and hashes[i] == hashes[i - 1]:
            continue
        slot = _slot(keys, hashes[i])
        if keys[slot] == 0:
            keys[slot] = hashes[i]
            new += 1
        if counts[slot] < needed:
            counts[slot] += 1
            if counts[slot] == needed:
                reached[slot] = position
    return new


@kernel()
def _move(
    old_keys: np.ndarray, old_counts: np.ndarray, old_reached: np.ndarray,
    keys: np.ndarray, counts: np.ndarray, reached: np.ndarray,
) -> None:
    for i in range(old_keys.size):
        if old_keys[i] != 0:
            slot = _slot(keys, old_keys[i])
            keys[slot], counts[slot], reached[slot] = old_keys[i], old_counts[i], old_reached[i]


_NEVER = np.iinfo(np.int64).max


class LineIndex:
    """How many documents each line occurred in. Documents are counted in their order; earlier ones again are not."""

    def __init__(self, max_documents: int) -> None:
        self._needed = max_documents
        self._newest = np.iinfo(np.int64).min
        self._used = 0
        self._keys, self._counts, self._reached = self._arrays(1024)

    def __len__(self) -> int:
        """Different lines."""
        return self._used

    @staticmethod
    def _arrays(slots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return np.zeros(slots, np.uint64), np.zeros(slots, np.int32), np.full(slots, _NEVER, np.int64)

    def memory_bytes(self) -> int:
        """Bytes of all arrays."""
        return self._keys.nbytes + self._counts.nbytes + self._reached.nbytes

    def common(self, position: int, hashes: np.ndarray) -> np.ndarray:
        """[n] bool: whether each line [n] uint64 of the document at this position is boilerplate by then."""
        found = np.empty(len(hashes), bool)
        _common(self._keys, self._reached, np.ascontiguousarray(hashes), position, found)
        return found

    def add(self, position: int, hashes: np.ndarray) -> None:
        """Count the lines of a kept document behind all counted before; one that was counted changes nothing."""
        if position <= self._newest:
            return
        self._newest = position
        if 4 * (self._used + len(hashes)) > 3 * self._keys.size:
            old = self._keys, self._counts, self._reached
            self._keys, self._counts, self._reached = self._arrays(3 * self._keys.size // 2 + 2 * len(hashes))
            _move(*old, self._keys, self._counts, self._reached)
        self._used += _count(self._keys, self._counts, self._reached, np.sort(hashes), position, self._needed)
