"""Exact repeated spans: at least N words that stood, one behind the other, in the kept text of an earlier document.

Lee et al., "Deduplicating Training Data Makes Language Models Better", ACL 2022, remove every repeated span of 50
tokens with a suffix array of the whole corpus. A stream has no whole corpus, so here an index grows with it, by
winnowing (Schleimer, Wilkerson, Aiken, SIGMOD 2003): of every w consecutive k-grams of words, k + w - 1 = N, the one
with the least hash is an **anchor** (the rightmost where several are least). Two equal spans of N words hold w equal
k-grams, hence choose the same anchor: every shared span of N words or more is found. An anchor that is found is then
compared word by word with the words stored before, k words and on to both sides as far as they agree, so borders are
exact, and what agrees over fewer than N words is left alone.

Words are those of near-dup (`minhash`): letter case and punctuation do not count. Tokens are words here and not pieces
of the tokenizer, so that the index does not depend on it. A word is stored as 32 bits of its hash: a removed span is N
equal hashes in a row. The first occurrence stays. Departures: repeats inside one document stay (the repetition rules
judge them); text past 500k characters is not looked at; an anchor that occurs more than MAX_OCCURRENCES times is known
by its earliest ones; comparing stops after BUDGET words per word of the document, so that a text of one repeated word
costs linear time. Both limits count words, not time.

Memory: 4 bytes per word that was kept, and 28 to 40 bytes per anchor, of which there are 2 / (w + 1) per word: with
N = 50, 0.074 per word, so 6 to 7 bytes per word, about as much as the text itself.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.dedup.minhash import MAX_SHINGLED_CHARS, character_kinds, hash_words
from pretrainer.data.dedup.ragged import Ragged
from pretrainer.data.dedup.removal import merge_ranges
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.data.hashing import POLYNOMIAL_BASE, mix64
from pretrainer.errors import StreamError

MAX_OCCURRENCES = 64
BUDGET = 64
SEPARATOR = np.uint32(0)
"""Between stored pieces of text that do not follow each other; no word has this hash."""
MAX_ANCHORS = 2**32 - 2


@kernel()
def _write_words(
    data: np.ndarray, offsets: np.ndarray, kinds: np.ndarray, scratch: np.ndarray, places: np.ndarray,
    hashes: np.ndarray, starts: np.ndarray, ends: np.ndarray,
) -> int:
    total = 0
    for d in range(offsets.size - 1):
        count = hash_words(data, offsets[d], offsets[d + 1], kinds, scratch, places)
        for i in range(count):
            short = np.uint32(scratch[i])
            hashes[total + i] = short if short != SEPARATOR else np.uint32(1)
            starts[total + i] = places[i] - offsets[d]
        total += count
        ends[d + 1] = total
    return total


class Words(NamedTuple):
    """The words of N texts."""

    hashes: Ragged  # uint32, never SEPARATOR
    starts: Ragged  # int32, the byte of the text where each word begins


def hash_all_words(texts: pa.Array | pa.ChunkedArray) -> Words:
    """Hashes and places of the words of N texts, of their first 500k characters."""
    data, offsets = utf8_buffers(texts)
    room = int(min(np.diff(offsets).max(initial=1), MAX_SHINGLED_CHARS))
    total = int(offsets[-1] - offsets[0]) + 1
    hashes, starts = np.empty(total, np.uint32), np.empty(total, np.int32)
    ends = np.zeros(offsets.size, np.int64)
    count = _write_words(data, offsets, character_kinds(), np.empty(room, np.uint64), np.empty(room, np.int64),
                         hashes, starts, ends)
    return Words(Ragged(hashes[:count].copy(), ends), Ragged(starts[:count].copy(), ends))


@kernel()
def anchors(words: np.ndarray, k: int, w: int, places: np.ndarray, keys: np.ndarray) -> int:
    """Write place and hash of each anchor of words [n]; returns how many. `places` and `keys` have room for n."""
    grams = words.size - k + 1
    if grams < w:
        return 0
    leaving = np.uint64(1)
    for _ in range(k):
        leaving *= POLYNOMIAL_BASE
    # The candidates of the window in ascending hash, as a ring of w + 1.
    ring_place, ring_hash = np.empty(w + 1, np.int64), np.empty(w + 1, np.uint64)
    head = tail = total = 0  # candidates are numbers head … tail - 1, modulo w + 1
    rolling, newest = np.uint64(0), -1
    for i in range(words.size):
        rolling = rolling * POLYNOMIAL_BASE + np.uint64(words[i]) + np.uint64(1)
        if i >= k:
            rolling -= leaving * (np.uint64(words[i - k]) + np.uint64(1))
        gram = i - k + 1
        if gram < 0:
            continue
        h = mix64(rolling)
        while tail > head and ring_hash[(tail - 1) % (w + 1)] >= h:
            tail -= 1
        ring_place[tail % (w + 1)], ring_hash[tail % (w + 1)] = gram, h
        tail += 1
        if ring_place[head % (w + 1)] <= gram - w:
            head += 1
        if gram >= w - 1 and ring_place[head % (w + 1)] != newest:
            newest = ring_place[head % (w + 1)]
            places[total], keys[total] = newest, ring_hash[head % (w + 1)]
            total += 1
    return total


class Pool(NamedTuple):
    """Stored words and anchors. In `heads` and `following` an anchor stands as its number + 1, and 0 for none."""

    words: np.ndarray  # [words] uint32
    slot_keys: np.ndarray  # [slots] uint64
    heads: np.ndarray  # [slots] uint32
    following: np.ndarray  # [anchors] uint32
    where: np.ndarray  # [anchors] int64, place in `words`


@kernel()
def _slot(p: Pool, key: np.uint64) -> int:
    slot: Any = np.int64(((key >> np.uint64(32)) * np.uint64(p.heads.size)) >> np.uint64(32))
    while p.heads[slot] != 0 and p.slot_keys[slot] != key:
        slot += 1
        if slot == p.heads.size:
            slot = 0
    return slot


@kernel()
def _store(p: Pool, first: int, count: int, places: np.ndarray, keys: np.ndarray, offset: int) -> int:
    """Add anchors as numbers first, first + 1, …; returns the number of those that took a free slot."""
    taken = 0
    for i in range(count):
        anchor = first + i
        p.where[anchor] = offset + places[i]
        slot = _slot(p, keys[i])
        if p.heads[slot] == 0:
            p.slot_keys[slot], p.heads[slot] = keys[i], np.uint32(anchor + 1)
            taken += 1
            continue
        last, length = np.int64(p.heads[slot]) - 1, 1
        while p.following[last] != 0 and length < MAX_OCCURRENCES:
            last, length = np.int64(p.following[last]) - 1, length + 1
        if length < MAX_OCCURRENCES:
            p.following[last] = np.uint32(anchor + 1)
    return taken


@kernel()
def _rehash(old: Pool, new: Pool) -> None:
    for i in range(old.heads.size):
        if old.heads[i] != 0:
            slot = _slot(new, old.slot_keys[i])
            new.slot_keys[slot], new.heads[slot] = old.slot_keys[i], old.heads[i]


@kernel()
def _match(
    p: Pool, limit: int, words: np.ndarray, places: np.ndarray, keys: np.ndarray, count: int, k: int, n: int,
    spans: np.ndarray,
) -> int:
    """Write [first, end) of each match of at least n words with words stored before `limit`; returns how many."""
    found, budget, diagonal, reach = 0, BUDGET * (words.size + n), np.int64(-1), 0
    for i in range(count):
        slot = _slot(p, keys[i])
        entry = np.int64(p.heads[slot]) - 1
        while entry >= 0 and budget > 0:
            other, here = p.where[entry], places[i]
            entry = np.int64(p.following[entry]) - 1
            if other >= limit:
                break
            if found and other - here == diagonal and here + k <= reach:
                continue  # inside the match that was written last
            first, end = here, here
            while end < words.size and other + end - here < limit and p.words[other + end - here] == words[end]:
                end += 1
            if end - here >= k:
                while first > 0 and other - here + first > 0 and p.words[other - here + first - 1] == words[first - 1]:
                    first -= 1
            budget -= end - first + 1
            if end - first >= n and end - here >= k:
                if found == spans.shape[0]:
                    return found
                spans[found, 0], spans[found, 1] = first, end
                found, diagonal, reach = found + 1, other - here, end
    return found


class SubstringIndex:
    """Words and anchors of the kept text of one source, in its order. Not safe for threads."""

    def __init__(self, min_words: int) -> None:
        self.k = min_words // 2
        self.w = min_words - self.k + 1
        self._min_words = min_words
        self._pool = _empty_pool(1 << 12, 1 << 10, 1 << 10)
        self._words = self._anchors = self._taken = 0
        self._positions, self._begins = np.zeros(64, np.int64), np.zeros(64, np.int64)
        self._documents = 0

    def memory_bytes(self) -> int:
        """Bytes of all arrays, spare room included."""
        return sum(array.nbytes for array in self._pool) + self._positions.nbytes + self._begins.nbytes

    def find(self, position: int, words: np.ndarray) -> np.ndarray:
        """[m, 2]: the spans of words [n] uint32 that stood before this position, merged."""
        places, keys, count = self._anchors_of(words)
        if count == 0:
            return np.empty((0, 2), np.int64)
        spans = np.empty((8 * count + 64, 2), np.int64)
        found = _match(self._pool, self._limit(position), words, places, keys, count, self.k, self._min_words, spans)
        return merge_ranges(spans[:found])

    def add(self, position: int, pieces: np.ndarray) -> None:
        """Store the kept words of a document, pieces between SEPARATORs; one that is stored changes nothing."""
        if self._documents and position <= self._positions[self._documents - 1]:
            return
        places, keys, count = self._anchors_of(pieces)
        self._make_room(len(pieces) + 1, count)
        self._positions[self._documents], self._begins[self._documents] = position, self._words
        self._documents += 1
        self._pool.words[self._words : self._words + len(pieces)] = pieces
        self._pool.words[self._words + len(pieces)] = SEPARATOR
        self._taken += _store(self._pool, self._anchors, count, places, keys, self._words)
        self._anchors += count
        self._words += len(pieces) + 1

    def keep(self, words: np.ndarray, spans: np.ndarray) -> np.ndarray:
        """Words outside of the spans, as pieces of at least N words with a SEPARATOR behind each."""
        edges = np.concatenate([[0], spans.ravel(), [len(words)]]).reshape(-1, 2)
        pieces = [words[a:b] for a, b in edges.tolist() if b - a >= self._min_words]
        return np.concatenate([np.zeros(0, np.uint32), *(part for p in pieces for part in (p, [SEPARATOR]))]).astype(
            np.uint32
        )

    def _limit(self, position: int) -> int:
        """Words before the first stored document at or behind a position."""
        after = int(np.searchsorted(self._positions[: self._documents], position))
        return int(self._begins[after]) if after < self._documents else self._words

    def _anchors_of(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        places, keys = np.empty(len(words), np.int64), np.empty(len(words), np.uint64)
        return places, keys, anchors(words, self.k, self.w, places, keys)

    def _make_room(self, words: int, count: int) -> None:
        if self._anchors + count > MAX_ANCHORS:
            raise StreamError(f"the substring index is full: it holds at most {MAX_ANCHORS:,} anchors of one source")
        pool = self._pool
        pool = pool._replace(words=_room(pool.words, self._words + words),
                             following=_room(pool.following, self._anchors + count),
                             where=_room(pool.where, self._anchors + count))
        if 4 * (self._taken + count) > 3 * pool.heads.size:
            slots = max(3 * pool.heads.size // 2, 2 * (self._taken + count))
            larger = pool._replace(slot_keys=np.zeros(slots, np.uint64), heads=np.zeros(slots, np.uint32))
            _rehash(pool, larger)
            pool = larger
        self._pool = pool
        self._positions, self._begins = (_room(a, self._documents + 1) for a in (self._positions, self._begins))


def _empty_pool(words: int, slots: int, count: int) -> Pool:
    return Pool(np.zeros(words, np.uint32), np.zeros(slots, np.uint64), np.zeros(slots, np.uint32),
                np.zeros(count, np.uint32), np.zeros(count, np.int64))


def _room(array: np.ndarray, needed: int) -> np.ndarray:
    """The array, or a copy that is a quarter larger or as large as needed."""
    if needed <= len(array):
        return array
    larger = np.zeros(max(needed, 5 * len(array) // 4), array.dtype)
    larger[: len(array)] = array
    return larger
