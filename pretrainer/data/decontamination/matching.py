"""Kernels that look for reference texts in documents: seeds, extension, the fullest window.

Where a document holds a seed, its words are compared with the reference's to both sides, word by word, until MAX_MISSES
in a row differ: a changed word costs itself and nothing around it, an inserted or missing one is bridged by the seeds
behind it. What counts is how many different words of the reference are matched inside a window of the document about as
long as the reference: they may stand in any order (shuffled choices), and phrases that are scattered over a long
document never add up.

A document is read in blocks of BLOCK_WORDS words that share `overlap` words, at least a window, so every window is
inside one block and the memory does not grow with the document.

Legend: R references, p a word of the block, g a word of the references.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pretrainer.data.compiled import kernel
from pretrainer.data.decontamination.seeds import BLOCK_WORDS, MAX_CHAIN, NONE, SEED_WORDS, Tables, find_seeds
from pretrainer.data.decontamination.words import Folding, read_words

MAX_MISSES = 3
"""The comparison beside a seed ends behind so many different words in a row."""
REACH_WORDS = 16
"""It goes no further than this from a seed; what is equal for longer has seeds of its own."""
_LOW = np.int64(0xFFFFFFFF)
_P_BITS, _P_MASK = np.int64(BLOCK_WORDS.bit_length() - 1), np.int64(BLOCK_WORDS - 1)  # p in a key


class Scratch(NamedTuple):
    """Arrays of one call, so that nothing is allocated per document."""

    words: np.ndarray  # [BLOCK_WORDS] uint64
    starts: np.ndarray  # [BLOCK_WORDS + 1] int64
    found: np.ndarray  # [BLOCK_WORDS, 2] int32: p and the head of the chain
    keys: np.ndarray  # [BLOCK_WORDS * MAX_CHAIN] int64: diagonal and p of each seed of each reference
    pairs: np.ndarray  # int64: p and g of matched words of one reference
    cover: np.ndarray  # [words of the longest reference] int32
    best: np.ndarray  # [R] int32, 0 between documents: matched words
    where: np.ndarray  # [R, 4] int64: bytes of the document and words g of the reference, from and to
    touched: np.ndarray  # [R] int32: references with best > 0


def new_scratch(t: Tables) -> Scratch:
    references, entries = t.needed.size, BLOCK_WORDS * MAX_CHAIN
    pairs = BLOCK_WORDS * (SEED_WORDS + 2 * REACH_WORDS)
    return Scratch(
        np.empty(BLOCK_WORDS, np.uint64), np.empty(BLOCK_WORDS + 1, np.int64), np.empty((BLOCK_WORDS, 2), np.int32),
        np.empty(entries, np.int64), np.empty(pairs, np.int64),
        np.zeros(int(np.diff(t.starts).max(initial=1)), np.int32), np.zeros(references, np.int32),
        np.zeros((references, 4), np.int64), np.zeros(references, np.int32),
    )  # fmt: skip


@kernel()
def _reference_of(t: Tables, key: np.int64) -> int:
    """The reference that a key of `_follow_chains` is of."""
    place = (key >> _P_BITS) + (key & _P_MASK)
    low, high = 0, t.starts.size - 1
    while high - low > 1:
        middle = (low + high) // 2
        if t.starts[middle] + middle * BLOCK_WORDS <= place:
            low = middle
        else:
            high = middle
    return low


@kernel()
def _follow_chains(t: Tables, s: Scratch, found: int) -> int:
    """A key (diagonal, p) for each reference of each seed found, sorted; returns how many.

    The diagonal is g - p, with BLOCK_WORDS for each reference before, so that the diagonals of two never meet.
    """
    count = 0
    for k in range(found):
        g, p = np.int64(s.found[k, 1]), np.int64(s.found[k, 0])
        while g != NONE:
            reference = np.searchsorted(t.starts, g, side="right") - 1
            s.keys[count] = (g + reference * BLOCK_WORDS - p) << _P_BITS | p
            count += 1
            g = np.int64(t.chain[g])
    s.keys[:count].sort()
    return count


@kernel()
def _matched_pairs(t: Tables, words: np.ndarray, reference: int, keys: np.ndarray, pairs: np.ndarray) -> int:
    """Matched words of one reference, from its keys; returns how many."""
    count = diagonal = done = 0
    for k in range(keys.size):
        p, shift = int(keys[k] & _P_MASK), int(keys[k] >> _P_BITS) - reference * BLOCK_WORDS
        if k == 0 or shift != diagonal:
            diagonal, done = shift, 0
        least = int(max(done, t.starts[reference] - shift, p - REACH_WORDS, 0))
        most = int(min(words.size, t.starts[reference + 1] - shift, p + SEED_WORDS + REACH_WORDS))
        for step in (-1, 1):
            q, misses = (p - 1, 0) if step < 0 else (max(p, done), 0)
            while least <= q < most and misses < MAX_MISSES:
                misses = 0 if words[q] == t.words[q + shift] else misses + 1
                if misses == 0 and t.counted[q + shift]:
                    pairs[count] = q << 32 | (q + shift)
                    count += 1
                q += step
        done = max(done, q)
    return count


@kernel()
def _fullest_window(t: Tables, s: Scratch, reference: int, count: int) -> tuple[int, int, int]:
    """(matched words, first and last pair) of the first window of the block that has most words of the reference.

    The first `count` pairs are of the reference; they are sorted.
    """
    pairs, first = s.pairs[:count], t.starts[reference]
    pairs.sort()
    low = matched = most = most_low = most_high = 0
    for high in range(count):
        word = (pairs[high] & _LOW) - first
        matched += s.cover[word] == 0
        s.cover[word] += 1
        while (pairs[high] >> 32) - (pairs[low] >> 32) >= t.windows[reference]:
            word = (pairs[low] & _LOW) - first
            s.cover[word] -= 1
            matched -= s.cover[word] == 0
            low += 1
        if matched > most:
            most, most_low, most_high = matched, low, high
    for k in range(low, count):
        s.cover[(pairs[k] & _LOW) - first] = 0
    return most, most_low, most_high


@kernel()
def _note(t: Tables, s: Scratch, reference: int, count: int, touched: int) -> int:
    """Keep the fullest window if it is the reference's fullest in this document; returns how many are touched."""
    most, low, high = _fullest_window(t, s, reference, count)
    if most < t.needed[reference] or most <= s.best[reference]:
        return touched
    if s.best[reference] == 0:
        s.touched[touched] = reference
        touched += 1
    least, last = s.pairs[low] & _LOW, s.pairs[low] & _LOW
    for k in range(low, high + 1):
        least, last = min(least, s.pairs[k] & _LOW), max(last, s.pairs[k] & _LOW)
    s.best[reference], s.where[reference, 2], s.where[reference, 3] = most, least, last + 1
    s.where[reference, 0] = s.starts[s.pairs[low] >> 32]
    s.where[reference, 1] = s.starts[(s.pairs[high] >> 32) + 1]
    return touched


@kernel()
def _match_block(t: Tables, s: Scratch, words: np.ndarray, touched: int) -> int:
    """Look for every reference in one block; returns how many are touched now."""
    count, first = _follow_chains(t, s, find_seeds(t, words, s.found)), 0
    while first < count:
        reference, end = _reference_of(t, s.keys[first]), first
        last = (t.starts[reference + 1] + reference * BLOCK_WORDS) << _P_BITS  # above every key of the reference
        while end < count and s.keys[end] < last:
            end += 1
        if s.best[reference] < t.whole[reference]:  # or it is found already
            pairs = _matched_pairs(t, words, reference, s.keys[first:end], s.pairs)
            touched = _note(t, s, reference, pairs, touched)
        first = end
    return touched


@kernel()
def match_text(text: np.ndarray, f: Folding, t: Tables, s: Scratch, overlap: int) -> int:
    """Look for every reference in one text; returns how many are touched. The caller sets their `best` back to 0."""
    count = i = touched = np.int64(0)  # not 0, a type of its own that would be compiled a second time
    while i < text.size:
        count, i = read_words(text, i, f, s.words, s.starts, count)
        touched = _match_block(t, s, s.words[:count], touched)
        kept = min(count, overlap)
        for k in range(kept):
            s.words[k], s.starts[k] = s.words[count - kept + k], s.starts[count - kept + k]
        count = kept
    return int(touched)


@kernel()
def measure_texts(
    data: np.ndarray, offsets: np.ndarray, f: Folding, t: Tables, s: Scratch, overlap: int,
    kinds: np.ndarray, limit: float, out: np.ndarray,
) -> None:
    """out [N, K + 1] float64: the largest share of a reference of each kind, and how many references are above limit.

    kinds [R] uint8 is the column of each reference.
    """
    for document in range(offsets.size - 1):
        touched = match_text(data[offsets[document] : offsets[document + 1]], f, t, s, overlap)
        for k in range(touched):
            reference = s.touched[k]
            share = min(1.0, s.best[reference] / t.whole[reference])
            kind = kinds[reference]
            out[document, kind] = max(out[document, kind], share)
            out[document, out.shape[1] - 1] += share > limit
            s.best[reference] = 0
