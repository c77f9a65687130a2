"""Hash tables of the dedup index, as compiled kernels over plain arrays: no Python object per document.

A **key** (32 bit) of a **column** leads to a **chain** of documents, in ascending position. The columns are position,
exact hash, URL (where URLs are compared) and one per LSH band, each with a table of its own. 32 bits are enough: what a
chain holds is always compared (position, 128-bit hash, sketch), so two keys that collide cost a comparison and decide
nothing; with 10^8 documents a look-up meets 0.02 strangers.

A chain keeps its 256 earliest documents. It thus depends on the set of inserted documents and not on the order of
insertion, and the part of it that lies before a position is the same whatever was inserted after that position; that
is why a replay on a live index, and a rebuilt index, give the first answer.

Legend: N documents of a call, E entries, C columns, B bands, S slots of a table.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pretrainer.data.compiled import kernel
from pretrainer.data.dedup.oddsketch import similarity, sketch_words
from pretrainer.data.hashing import mix64

MAX_CHAIN = 256
"""A look-up costs at most this many comparisons per band, however common the key is."""
MAX_ENTRIES = 2**32 - 2

POSITION, EXACT, URL = 0, 1, 2
NONE = -1
EXACT_MATCH, URL_MATCH = 2.0, 3.0
"""`similarity` of a document that was found by its exact hash or its URL; of a near-duplicate it is at most 1."""

ENTRIES, SKETCH_WORDS, COMPARISONS, MAX_KEYS = 0, 1, 2, 3

# numpy's error model leaves out the check for division by zero.
_kernel = _inner = kernel(error_model="numpy")


class Tables(NamedTuple):
    """Arrays of the index. In `slot_heads` and `next_node` an entry stands as its number + 1, and 0 for none."""

    used: np.ndarray  # [4] int64: entries, words of sketches, sketches compared so far, most keys of a column
    keys: np.ndarray  # [C] int64, taken slots of each column
    slot_keys: np.ndarray  # [C, S] uint32
    slot_heads: np.ndarray  # [C, S] uint32, first entry of the chain
    next_node: np.ndarray  # [E, C] uint32
    positions: np.ndarray  # [E] int64
    hashes: np.ndarray  # [E, 2] uint64
    urls: np.ndarray  # [E, 2] uint64, or [0, 2] where URLs are not compared
    sizes: np.ndarray  # [E] int32, different shingles
    starts: np.ndarray  # [E] int64, first word of the sketch
    sketches: np.ndarray  # [words] uint64


class Documents(NamedTuple):
    """N documents of a call."""

    positions: np.ndarray  # [N] int64
    keys: np.ndarray  # [N, C] uint32
    hashes: np.ndarray  # [N, 2] uint64
    urls: np.ndarray  # [N, 2] uint64 or [0, 2]
    sizes: np.ndarray  # [N] int32; 0 for documents that are exempt from near-dup
    starts: np.ndarray  # [N] int64
    sketches: np.ndarray  # [words] uint64


def empty_tables(entries: int, slots: int, words: int, bands: int, urls: bool) -> Tables:
    """Room for `entries` documents, `slots` keys of a column and `words` of sketches."""
    columns = 2 + urls + bands
    return Tables(
        np.zeros(4, np.int64), np.zeros(columns, np.int64),
        np.zeros((columns, slots), np.uint32), np.zeros((columns, slots), np.uint32),
        np.zeros((entries, columns), np.uint32), np.zeros(entries, np.int64), np.zeros((entries, 2), np.uint64),
        np.zeros((entries if urls else 0, 2), np.uint64), np.zeros(entries, np.int32), np.zeros(entries, np.int64),
        np.zeros(words, np.uint64),
    )


@_kernel
def make_keys(positions: np.ndarray, hashes: np.ndarray, urls: np.ndarray, bands: np.ndarray, keys: np.ndarray) -> None:
    """Fill keys [N, C] uint32 from band keys [N, B] uint32 and what the other columns compare."""
    first_band = keys.shape[1] - bands.shape[1]
    for i in range(positions.size):
        keys[i, POSITION] = np.uint32(mix64(np.uint64(positions[i])))
        keys[i, EXACT] = np.uint32(hashes[i, 1])
        if first_band > URL:
            keys[i, URL] = np.uint32(urls[i, 1])
        for band in range(bands.shape[1]):
            keys[i, first_band + band] = bands[i, band]


@_kernel
def band_keys(minhash: np.ndarray, rows_per_band: int, bands: np.ndarray) -> None:
    """Fill bands [N, B] uint32: a hash of each `rows_per_band` consecutive values of minhash [N, P]."""
    for i in range(minhash.shape[0]):
        for band in range(bands.shape[1]):
            key = np.uint64(band)
            for row in range(band * rows_per_band, (band + 1) * rows_per_band):
                key = mix64(key ^ np.uint64(minhash[i, row]))
            bands[i, band] = np.uint32(key)


@_inner
def _slot_of(slot_keys: np.ndarray, slot_heads: np.ndarray, key: np.uint32) -> int:
    """The slot of the key, or the free slot where it belongs; any number of slots will do."""
    slots = slot_keys.size
    slot: Any = np.int64((np.uint64(key) * np.uint64(slots)) >> np.uint64(32))
    while slot_heads[slot] != 0 and slot_keys[slot] != key:
        slot += 1
        if slot == slots:
            slot = 0
    return slot


@_kernel
def rehash(old: Tables, slot_keys: np.ndarray, slot_heads: np.ndarray) -> None:
    """Move all chains to larger tables [C, S]."""
    for column in range(slot_keys.shape[0]):
        for i in range(old.slot_keys.shape[1]):
            if old.slot_heads[column, i] != 0:
                slot = _slot_of(slot_keys[column], slot_heads[column], old.slot_keys[column, i])
                slot_keys[column, slot], slot_heads[column, slot] = old.slot_keys[column, i], old.slot_heads[column, i]


@_inner
def _head(t: Tables, column: int, key: np.uint32) -> Any:
    slot = _slot_of(t.slot_keys[column], t.slot_heads[column], key)
    return np.int64(t.slot_heads[column, slot]) - 1


@_inner
def _next(t: Tables, entry: int, column: int) -> Any:
    return np.int64(t.next_node[entry, column]) - 1


@_inner
def _link(t: Tables, entry: int, column: int, key: np.uint32) -> None:
    """Put the entry in its place in the chain of the key and cut the chain behind MAX_CHAIN."""
    slot = _slot_of(t.slot_keys[column], t.slot_heads[column], key)
    if t.slot_heads[column, slot] == 0:
        t.slot_keys[column, slot], t.slot_heads[column, slot] = key, np.uint32(entry + 1)
        t.keys[column] += 1
        t.used[MAX_KEYS] = max(t.used[MAX_KEYS], t.keys[column])
        return
    before: Any = NONE
    after, length = np.int64(t.slot_heads[column, slot]) - 1, 0
    while after != NONE and t.positions[after] < t.positions[entry]:
        before, after = after, _next(t, after, column)
        length += 1
    if length >= MAX_CHAIN:
        return
    t.next_node[entry, column] = np.uint32(after + 1)
    if before == NONE:
        t.slot_heads[column, slot] = np.uint32(entry + 1)
    else:
        t.next_node[before, column] = np.uint32(entry + 1)
    last = entry
    while last != NONE and length < MAX_CHAIN - 1:
        last = _next(t, last, column)
        length += 1
    if last != NONE:
        t.next_node[last, column] = 0


@_inner
def _entry_at(t: Tables, key: np.uint32, position: int) -> int:
    """Entry that stands at the position (key is its position key), or NONE."""
    entry = _head(t, POSITION, key)
    while entry != NONE and t.positions[entry] != position:
        entry = _next(t, entry, POSITION)
    return entry


@_inner
def _earliest_equal(t: Tables, column: int, key: np.uint32, stored: np.ndarray, wanted: np.ndarray, limit: int) -> int:
    """Earliest entry before position `limit` whose 128-bit value in `stored` is the wanted one, or NONE."""
    entry = _head(t, column, key)
    while entry != NONE:
        if t.positions[entry] >= limit:
            return NONE
        if stored[entry, 0] == wanted[0] and stored[entry, 1] == wanted[1]:
            return entry
        entry = _next(t, entry, column)
    return NONE


@_inner
def _earliest_near(t: Tables, d: Documents, i: int, threshold: float) -> tuple[int, float]:
    """(earliest verified entry before document i or NONE, its similarity)."""
    size, limit, best, best_share = np.int64(d.sizes[i]), d.positions[i], NONE, 0.0
    sketch = d.sketches[d.starts[i] : d.starts[i] + sketch_words(size)]
    columns = d.keys.shape[1]
    for column in range(URL + (t.urls.shape[0] > 0), columns):
        entry = _head(t, column, d.keys[i, column])
        while entry != NONE and t.positions[entry] < limit:
            other = np.int64(t.sizes[entry])
            if min(size, other) >= threshold * max(size, other):  # J is at most the ratio of the sizes
                t.used[COMPARISONS] += 1
                start = t.starts[entry]
                share = similarity(sketch, size, t.sketches[start : start + sketch_words(other)], other)
                if share >= threshold:
                    best, best_share, limit = entry, share, t.positions[entry]
                    break
            entry = _next(t, entry, column)
    return best, best_share


@_inner
def _add_entry(t: Tables, d: Documents, i: int) -> bool:
    """Insert document i; returns False if another document (another exact hash) already stands at its position.

    The same document again changes nothing.
    """
    known = _entry_at(t, d.keys[i, POSITION], d.positions[i])
    if known != NONE:
        return t.hashes[known, 0] == d.hashes[i, 0] and t.hashes[known, 1] == d.hashes[i, 1]
    entry = t.used[ENTRIES]
    t.used[ENTRIES] += 1
    t.positions[entry], t.sizes[entry], t.starts[entry] = d.positions[i], d.sizes[i], t.used[SKETCH_WORDS]
    t.hashes[entry, 0], t.hashes[entry, 1] = d.hashes[i, 0], d.hashes[i, 1]
    columns, first_band = d.keys.shape[1], URL
    if t.urls.shape[0] > 0:
        first_band = URL + 1
        t.urls[entry, 0], t.urls[entry, 1] = d.urls[i, 0], d.urls[i, 1]
    if d.sizes[i] > 0:
        words = sketch_words(np.int64(d.sizes[i]))
        for w in range(words):  # a slice assignment costs 1.5 s of compilation
            t.sketches[t.used[SKETCH_WORDS] + w] = d.sketches[d.starts[i] + w]
        t.used[SKETCH_WORDS] += words
    for column in range(columns):
        if column < URL or (column >= first_band and d.sizes[i] > 0):
            _link(t, entry, column, d.keys[i, column])
        elif column < first_band and (d.urls[i, 0] != 0 or d.urls[i, 1] != 0):
            _link(t, entry, column, d.keys[i, column])
    return True


@_inner
def _find(t: Tables, d: Documents, i: int, exact: bool, threshold: float) -> tuple[int, float]:
    """(entry that document i duplicates or NONE, similarity): by exact hash, then by URL, then by sketch."""
    entry = NONE
    if exact:
        entry = _earliest_equal(t, EXACT, d.keys[i, EXACT], t.hashes, d.hashes[i], d.positions[i])
        if entry != NONE:
            return entry, EXACT_MATCH
    if t.urls.shape[0] > 0 and (d.urls[i, 0] != 0 or d.urls[i, 1] != 0):
        entry = _earliest_equal(t, URL, d.keys[i, URL], t.urls, d.urls[i], d.positions[i])
        if entry != NONE:
            return entry, URL_MATCH
    if d.sizes[i] > 0:
        return _earliest_near(t, d, i, threshold)
    return entry, 0.0


@_kernel
def decide_all(
    t: Tables, d: Documents, exact: bool, threshold: float, insert: bool, found: np.ndarray, share: np.ndarray
) -> int:
    """Decide N documents in order and, with `insert`, insert those kept.

    Writes found [N] int64 (the entry that each duplicates, or NONE if kept) and share [N] float64 (similarity, or
    EXACT_MATCH, URL_MATCH). Returns the first document that contradicts its position, or NONE.
    """
    for i in range(d.positions.size):
        found[i], share[i] = _find(t, d, i, exact, threshold)
        if insert and found[i] == NONE and not _add_entry(t, d, i):
            return i
    return NONE


@_kernel
def insert_all(t: Tables, d: Documents) -> int:
    """Insert N documents; returns the first that contradicts its position, or NONE."""
    for i in range(d.positions.size):
        if not _add_entry(t, d, i):
            return i
    return NONE
