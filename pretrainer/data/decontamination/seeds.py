"""Seeds of the reference texts: a hash table of them, and where a text has one.

A **seed** is SEED_WORDS consecutive words of a reference. Its hash is a polynomial of the words' hashes modulo 2^64;
equal hashes are verified word by word. A bit filter in front of the table answers for most words of a clean text.

Legend: R references, W words of all references, p a word of a block of text, g a word of the references.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pretrainer.data.compiled import kernel
from pretrainer.data.decontamination.words import Folding, read_words
from pretrainer.data.hashing import POLYNOMIAL_BASE

SEED_WORDS = 5
MAX_CHAIN = 64
"""A seed leads to at most so many references, the first ones: a look-up stays cheap for texts made from a template."""
BLOCK_WORDS = 4096
"""Words of a text that are in memory at once."""
NONE = -1
_REPEAT_WORDS = 16  # a seed that was found at most so many words before tells nothing new
_LEAVING = np.uint64(pow(int(POLYNOMIAL_BASE), SEED_WORDS, 2**64))  # weight of a word when it leaves the seed


class Tables(NamedTuple):
    """References as arrays. A chain links the equal seeds of several references, in their order."""

    words: np.ndarray  # [W] uint64
    starts: np.ndarray  # [R + 1] int64: first word of each reference
    counted: np.ndarray  # [W] bool: whether the word is in a seed of the index; the others are no evidence
    needed: np.ndarray  # [R] int32: fewer matched words count as none
    whole: np.ndarray  # [R] int32: as many matched words are the whole text, or a whole passage of a long one
    windows: np.ndarray  # [R] int32: words of the document that are looked at together
    chain: np.ndarray  # [W] int32: the next word with an equal seed, or NONE
    slots: np.ndarray  # [power of two] int32: first word of a chain, or NONE
    filter: np.ndarray  # [power of two] uint64: bits of the seeds, in front of the slots


@kernel()
def _equal_seeds(left: np.ndarray, right: np.ndarray) -> bool:
    for j in range(SEED_WORDS):
        if left[j] != right[j]:
            return False
    return True


@kernel()
def _slot_of(t: Tables, words: np.ndarray, p: int, seed: np.uint64) -> np.uint64:
    """The slot of the chain whose seed stands at words[p:], or the free slot where it belongs."""
    mask = np.uint64(t.slots.size - 1)
    slot = seed & mask
    while t.slots[slot] != NONE and not _equal_seeds(t.words[t.slots[slot] :], words[p:]):
        slot = (slot + np.uint64(1)) & mask
    return slot


@kernel()
def _filter_bit(t: Tables, seed: np.uint64) -> tuple[np.uint64, np.uint64]:
    """(place in the filter, bit) of a seed, from other bits of its hash than the slot."""
    bit = seed >> np.uint64(32)
    return (bit >> np.uint64(6)) & np.uint64(t.filter.size - 1), np.uint64(1) << (bit & np.uint64(63))


@kernel()
def insert_seeds(t: Tables, seeds: np.ndarray) -> None:
    """Fill slots, chains and filter from the words whose flag [W] bool is set.

    Clears the flags of what has no place: the ends of references, a seed that its reference had before, and a seed
    that MAX_CHAIN references before have.
    """
    for reference in range(t.starts.size - 1):
        first, end = t.starts[reference], t.starts[reference + 1]
        seeds[max(first, end - SEED_WORDS + 1) : end] = False
        for g in range(first, end - SEED_WORDS + 1):
            if seeds[g]:
                seed = np.uint64(0)
                for j in range(SEED_WORDS):
                    seed = seed * POLYNOMIAL_BASE + t.words[g + j]
                seeds[g] = _link(t, first, g, seed)


@kernel()
def _link(t: Tables, first: int, g: int, seed: np.uint64) -> bool:
    """Put word g behind the chain of its seed unless that is full or has a word of this reference (from `first`)."""
    slot = _slot_of(t, t.words, g, seed)
    last, length = np.int64(NONE), 0
    following = np.int64(t.slots[slot])
    while following != NONE:
        last, length = following, length + 1
        following = np.int64(t.chain[last])
    if length >= MAX_CHAIN or last >= first:
        return False
    if last == NONE:
        t.slots[slot] = g
        place, bit = _filter_bit(t, seed)
        t.filter[place] |= bit
    else:
        t.chain[last] = g
    return True


@kernel()
def find_seeds(t: Tables, words: np.ndarray, found: np.ndarray) -> int:
    """Write (p, head of the chain) of each seed of the index in a block; returns how many."""
    count, seed = 0, np.uint64(0)
    for i in range(words.size):
        seed = seed * POLYNOMIAL_BASE + words[i]
        if i >= SEED_WORDS:
            seed -= _LEAVING * words[i - SEED_WORDS]
        place, bit = _filter_bit(t, seed)
        if t.filter[place] & bit and i >= SEED_WORDS - 1:
            p = i - SEED_WORDS + 1
            head = t.slots[_slot_of(t, words, p, seed)]
            if head != NONE and not _is_repeat(found, count, p, head):
                found[count, 0], found[count, 1] = p, head
                count += 1
    return count


@kernel()
def _is_repeat(found: np.ndarray, count: int, p: int, head: int) -> bool:
    k = count - 1
    while k >= 0 and found[k, 0] >= p - _REPEAT_WORDS:
        if found[k, 1] == head:
            return True
        k -= 1
    return False


@kernel()
def count_texts(
    data: np.ndarray, offsets: np.ndarray, f: Folding, t: Tables, counts: np.ndarray, seen: np.ndarray
) -> None:
    """Add to counts [W] int32, at the head of each seed's chain, the texts that hold the seed.

    seen [W] int32 is the last text with each; -1 at first.
    """
    words, starts = np.empty(BLOCK_WORDS, np.uint64), np.empty(BLOCK_WORDS + 1, np.int64)
    found = np.empty((BLOCK_WORDS, 2), np.int32)
    for document in range(offsets.size - 1):
        text = data[offsets[document] : offsets[document + 1]]
        count = i = np.int64(0)
        while i < text.size:
            count, i = read_words(text, i, f, words, starts, count)
            for k in range(find_seeds(t, words[:count], found)):
                head = found[k, 1]
                counts[head] += seen[head] != document
                seen[head] = document
            kept = min(count, SEED_WORDS - 1)
            for k in range(kept):
                words[k] = words[count - kept + k]
            count = kept


@kernel()
def spread_counts(t: Tables, counts: np.ndarray) -> None:
    """Copy the count at the head of every chain to its other words."""
    for slot in range(t.slots.size):
        head = t.slots[slot]
        if head != NONE:
            g = t.chain[head]
            while g != NONE:
                counts[g] = counts[head]
                g = t.chain[g]
