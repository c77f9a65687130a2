"""Hash tables of the dedup index, as compiled kernels over plain arrays: no Python object per document.

A **key** (64 bit) leads to a **chain** of documents, in ascending position. A document has B + 2 keys: position,
exact hash and one per LSH band; **node** = entry x (B + 2) + column is its place in the chain of that column's key.
A chain keeps its 256 earliest documents. It thus depends on the set of inserted documents and not on the order of
insertion, and the part of it that lies before a position is the same whatever was inserted after that position; that
is why a replay on a live index, and a rebuilt index, give the first answer.

Legend: N documents of a call, E entries, P permutations, B bands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pretrainer.data.compiled import kernel
from pretrainer.data.hashing import mix64

MAX_CHAIN = 256
"""A look-up costs at most this many verifications per band, however common the key is."""

POSITION_COLUMN, EXACT_COLUMN, FIRST_BAND_COLUMN = 0, 1, 2
NONE = -1

# numpy's error model leaves out the check for division by zero.
_kernel = _inner = kernel(error_model="numpy")


class Tables(NamedTuple):
    """Arrays of the index; the first `used[0]` entries are filled, `used[1]` slots are taken."""

    used: np.ndarray  # [2] int64
    slot_keys: np.ndarray  # [slots] uint64, 0 is free; slots is a power of two
    slot_heads: np.ndarray  # [slots] int64, first node of the chain
    next_node: np.ndarray  # [E, B + 2] int64, or NONE
    positions: np.ndarray  # [E] int64
    hashes: np.ndarray  # [E, 2] uint64
    minhash: np.ndarray  # [E, P] uint32


def empty_tables(entries: int, slots: int, permutations: int, bands: int) -> Tables:
    """Room for `entries` documents and `slots` keys."""
    return Tables(
        np.zeros(2, np.int64), np.zeros(slots, np.uint64), np.zeros(slots, np.int64),
        np.full((entries, bands + 2), NONE, np.int64), np.zeros(entries, np.int64),
        np.zeros((entries, 2), np.uint64), np.zeros((entries, permutations), np.uint32),
    )


@_kernel
def make_keys(
    positions: np.ndarray, hashes: np.ndarray, minhash: np.ndarray, rows_per_band: int, keys: np.ndarray
) -> None:
    """Fill keys [N, B + 2] uint64; never 0. The column enters each key, so that columns do not share chains."""
    for i in range(positions.size):
        keys[i, 0] = mix64(np.uint64(positions[i]))
        keys[i, 1] = mix64(hashes[i, 0] ^ mix64(hashes[i, 1] + np.uint64(1)))
        for band in range(keys.shape[1] - 2):
            key = mix64(np.uint64(band + 2))
            for row in range(band * rows_per_band, (band + 1) * rows_per_band):
                key = mix64(key ^ np.uint64(minhash[i, row]))
            keys[i, band + 2] = key
        for column in range(keys.shape[1]):
            if keys[i, column] == 0:
                keys[i, column] = np.uint64(1)


@_inner
def _slot_of(slot_keys: np.ndarray, key: np.uint64) -> np.uint64:
    """The slot of the key, or the free slot where it belongs."""
    mask = np.uint64(slot_keys.size - 1)
    slot = key & mask
    while slot_keys[slot] != 0 and slot_keys[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@_kernel
def rehash(old_keys: np.ndarray, old_heads: np.ndarray, new_keys: np.ndarray, new_heads: np.ndarray) -> None:
    """Move all chains to a larger table."""
    for i in range(old_keys.size):
        if old_keys[i] != 0:
            slot = _slot_of(new_keys, old_keys[i])
            new_keys[slot], new_heads[slot] = old_keys[i], old_heads[i]


@_inner
def _head(t: Tables, key: np.uint64) -> int:
    slot = _slot_of(t.slot_keys, key)
    return t.slot_heads[slot] if t.slot_keys[slot] != 0 else NONE


@_inner
def _link(t: Tables, entry: int, column: int, key: np.uint64) -> None:
    """Put the entry in its place in the chain of the key and cut the chain behind MAX_CHAIN."""
    columns = t.next_node.shape[1]
    node = entry * columns + column
    slot = _slot_of(t.slot_keys, key)
    if t.slot_keys[slot] == 0:
        t.slot_keys[slot], t.slot_heads[slot] = key, node
        t.used[1] += 1
        return
    before, after, length = NONE, t.slot_heads[slot], 0
    while after != NONE and t.positions[after // columns] < t.positions[entry]:
        before, after = after, t.next_node[after // columns, after % columns]
        length += 1
    if length >= MAX_CHAIN:
        return
    t.next_node[entry, column] = after
    if before == NONE:
        t.slot_heads[slot] = node
    else:
        t.next_node[before // columns, before % columns] = node
    last = node
    while last != NONE and length < MAX_CHAIN - 1:
        last = t.next_node[last // columns, last % columns]
        length += 1
    if last != NONE:
        t.next_node[last // columns, last % columns] = NONE


@_inner
def _entry_at(t: Tables, key: np.uint64, position: int) -> int:
    """Entry that stands at the position (key is its position key), or NONE."""
    columns = t.next_node.shape[1]
    node = _head(t, key)
    while node != NONE and t.positions[node // columns] != position:
        node = t.next_node[node // columns, node % columns]
    return node // columns if node != NONE else NONE


@_inner
def _earliest_exact(t: Tables, key: np.uint64, high: np.uint64, low: np.uint64, position: int) -> int:
    """Earliest entry before the position with this hash, or NONE."""
    columns = t.next_node.shape[1]
    node = _head(t, key)
    while node != NONE:
        entry = node // columns
        if t.positions[entry] >= position:
            return NONE
        if t.hashes[entry, 0] == high and t.hashes[entry, 1] == low:
            return entry
        node = t.next_node[entry, node % columns]
    return NONE


@_inner
def _equal_values(left: np.ndarray, right: np.ndarray) -> int:
    equal = 0
    for p in range(left.size):
        equal += left[p] == right[p]
    return equal


@_inner
def _earliest_near(
    t: Tables, keys: np.ndarray, signature: np.ndarray, position: int, min_equal: int
) -> tuple[int, int]:
    """(earliest verified entry before the position or NONE, equal values); keys are the document's B + 2 keys."""
    columns = t.next_node.shape[1]
    best, best_equal, limit = NONE, 0, position
    for column in range(2, columns):
        node = _head(t, keys[column])
        while node != NONE:
            entry = node // columns
            if t.positions[entry] >= limit:
                break
            equal = _equal_values(t.minhash[entry], signature)
            if equal >= min_equal:
                best, best_equal, limit = entry, equal, t.positions[entry]
                break
            node = t.next_node[entry, node % columns]
    return best, best_equal


@_inner
def _add_entry(
    t: Tables, keys: np.ndarray, position: int, hashes: np.ndarray, signature: np.ndarray, in_bands: bool
) -> bool:
    """Insert one document; returns False if another document (another exact hash) already stands at its position.

    The same document again changes nothing. `in_bands` is False for documents that are exempt from near-dup.
    """
    known = _entry_at(t, keys[0], position)
    if known != NONE:
        return t.hashes[known, 0] == hashes[0] and t.hashes[known, 1] == hashes[1]
    entry = t.used[0]
    t.used[0] += 1
    t.positions[entry] = position
    t.hashes[entry, 0], t.hashes[entry, 1] = hashes[0], hashes[1]
    for p in range(signature.size):  # a slice assignment costs 1.5 s of compilation
        t.minhash[entry, p] = signature[p]
    for column in range(t.next_node.shape[1] if in_bands else 2):
        _link(t, entry, column, keys[column])
    return True


@_kernel
def decide_all(
    t: Tables, keys: np.ndarray, positions: np.ndarray, hashes: np.ndarray, minhash: np.ndarray, in_bands: np.ndarray,
    exact: bool, min_equal: int, found: np.ndarray, equal: np.ndarray,
) -> int:
    """Decide N documents in order and insert those kept.

    Writes found [N] int64 (the entry that each duplicates, or NONE if kept) and equal [N] int64 (equal values of a
    near-duplicate, -1 for an exact one). Returns the first document that contradicts its position, or NONE.
    """
    for i in range(positions.size):
        found[i], equal[i] = NONE, 0
        if exact:
            found[i] = _earliest_exact(t, keys[i, 1], hashes[i, 0], hashes[i, 1], positions[i])
            if found[i] != NONE:
                equal[i] = -1
        if found[i] == NONE and in_bands[i]:
            found[i], equal[i] = _earliest_near(t, keys[i], minhash[i], positions[i], min_equal)
        if found[i] == NONE and not _add_entry(t, keys[i], positions[i], hashes[i], minhash[i], in_bands[i]):
            return i
    return NONE


@_kernel
def insert_all(
    t: Tables, keys: np.ndarray, positions: np.ndarray, hashes: np.ndarray, minhash: np.ndarray, in_bands: np.ndarray
) -> int:
    """Insert N documents; returns the first that contradicts its position, or NONE."""
    for i in range(positions.size):
        if not _add_entry(t, keys[i], positions[i], hashes[i], minhash[i], in_bands[i]):
            return i
    return NONE
