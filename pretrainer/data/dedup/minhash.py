"""Shingles, MinHash signatures and odd sketches in one pass over UTF-8 bytes, without a Python object per shingle.

MinHash: Broder, "On the resemblance and containment of documents", 1997. The share of equal values of two signatures
estimates the Jaccard similarity of their shingle sets, standard error sqrt(J (1 - J) / P). Here signatures only find
candidates, through LSH bands of consecutive values; `oddsketch` verifies them, 4 times as exactly in a quarter of the
bytes. Repeated shingles count once: the sets are those of the definition.

**Word**: a maximal run of word characters, ASCII letters in lower case. Word characters are ASCII letters and digits
and all non-ASCII characters except the ranges of `_SEPARATORS`; a character of the scripts written without spaces
(`_SINGLES`) is a word by itself, or a Chinese page would be one word. The ranges are fixed here and not taken from
`unicodedata`, so that a signature does not depend on the Python version. Non-ASCII letters keep their case.

**Shingle**: `shingle_words` consecutive words; a text with fewer words is one shingle, a text without a word has none.
Words are hashed to 64 bit (a polynomial of base 257, then the MurmurHash3 finalizer), a shingle is a polynomial of its
words' hashes modulo 2^64, finalized again; the low 32 bits enter the permutations. A document has at most 250,000
shingles (500,000 for scripts without spaces), so at worst 30 of them are expected to collide in 32 bit.
With `unit="characters"` a shingle is so many consecutive characters of the text as it stands.

**Permutations**: h -> a h + b mod 2^32 with odd a over a finalized hash: the scheme "affine32" of datasketch 2.0, with
its seed 1, so that a signature equals datasketch's value by value when that is fed the same 32-bit hashes. The older
(a h + b mod 2^61 - 1) cut to 32 bits collides and overestimates similarity on large sets (datasketch issue 212).

Legend: N documents, P permutations, B bands.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.dedup.oddsketch import MIN_WORDS, sketch_words, write_sketch
from pretrainer.data.dedup.ragged import Ragged
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.data.hashing import POLYNOMIAL_BASE, mix64

MAX_SHINGLED_CHARS = 500_000
"""A longer text is represented by the shingles of its first characters (the cost of a 1 GB line stays bounded)."""

EMPTY = np.uint32(2**32 - 1)
"""Every value of the signature of a text without a word."""

MIN_SHINGLES = 10
"""A document with fewer different shingles has no sketch: it is exempt from near-dup."""

Unit = Literal["", "words", "characters"]

_SEED = 1
_SEPARATOR, _LETTER, _SINGLE = 0, 1, 2
# Control and Latin-1 punctuation, general punctuation to box drawing, CJK punctuation, compatibility and full-width
# punctuation. Inclusive ranges of code points.
_SEPARATORS = ((0x80, 0xA9), (0xAB, 0xB4), (0xB6, 0xB9), (0xBB, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7), (0x1680, 0x1680),
               (0x2000, 0x206F), (0x20A0, 0x20CF), (0x2190, 0x2BFF), (0x2E00, 0x2E7F), (0x3000, 0x3004),
               (0x3008, 0x3020), (0x3030, 0x3030), (0xFE10, 0xFE1F), (0xFE30, 0xFE6F), (0xFF00, 0xFF0F),
               (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65), (0xFEFF, 0xFEFF))
# Thai, Lao, Myanmar, Khmer, kana, ideographs and their extensions.
_SINGLES = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3021, 0x302F), (0x3031, 0x312F),
            (0x31A0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F))

# By byte: 0 for an ASCII separator, 1 for a byte of another character, else the letter in lower case or the digit.
_FOLDED = np.array([ord(chr(b).lower()) if b < 0x80 and chr(b).isalnum() else b >= 0x80 for b in range(256)], np.uint8)

_BASE = np.uint64(257)
"""A word is a polynomial of its bytes: no two words of up to 8 bytes collide, and a shift and two additions make it."""

_TILE = 2048  # shingles per tile: 8 KB, which stays in the first-level cache while all permutations pass over it


def scheme_id(shingle: int, permutations: int, unit: Unit = "words") -> str:
    """Names everything that a signature depends on besides the text; signatures of two schemes never compare."""
    return f"{unit}2-{shingle}gram-max{MAX_SHINGLED_CHARS}-affine32-seed{_SEED}-{permutations}"


@functools.cache
def character_kinds() -> np.ndarray:
    """[65536] uint8: the kind of each code point of the Basic Multilingual Plane."""
    kinds = np.full(0x10000, _LETTER, np.uint8)
    kinds[:0x80] = [_LETTER if chr(code_point).isalnum() else _SEPARATOR for code_point in range(0x80)]
    for ranges, kind in ((_SEPARATORS, _SEPARATOR), (_SINGLES, _SINGLE)):
        for first, last in ranges:
            kinds[first : last + 1] = kind
    return kinds


@functools.cache
def permutation_parameters(permutations: int) -> tuple[np.ndarray, np.ndarray]:
    """(a odd, b), each [P] uint32, from numpy's frozen legacy generator in the order in which datasketch draws them."""
    generator = np.random.RandomState(_SEED)
    a = generator.randint(0, 1 << 31, permutations, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return a, generator.randint(0, 1 << 32, permutations, dtype=np.uint32)


@kernel()
def _mix32(h: np.uint32) -> np.uint32:
    """The 32-bit finalizer of MurmurHash3, also a bijection."""
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = np.uint32(h)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    h = np.uint32(h)
    return h ^ (h >> np.uint32(16))


@kernel()
def _character(data: np.ndarray, i: int, kinds: np.ndarray) -> tuple[int, np.uint8]:
    """(bytes, kind) of the character whose first byte is data[i]."""
    lead = np.int64(data[i])
    if lead < 0x80:
        return 1, kinds[lead]
    if lead < 0xE0:
        return 2, kinds[(lead & 0x1F) << 6 | np.int64(data[i + 1] & 0x3F)]
    if lead < 0xF0:
        return 3, kinds[(lead & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | np.int64(data[i + 2] & 0x3F)]
    # Planes 2 and 3 (second byte A0 or more) are ideographs; plane 1 is letters and emoji.
    return 4, np.uint8(_SINGLE if lead == 0xF0 and data[i + 1] >= 0xA0 else _LETTER)


@kernel()
def hash_words(
    data: np.ndarray, start: int, end: int, kinds: np.ndarray, out: np.ndarray, starts: np.ndarray
) -> int:
    """Write the 64-bit hash of each word of data[start:end] to out; returns how many there are.

    `starts` gets the place in `data` where each word begins, unless it is empty.
    """
    count = chars = 0
    word, in_word, previous = np.uint64(0), False, np.uint8(_SEPARATOR)
    i = start
    while i < end and chars < MAX_SHINGLED_CHARS:
        if data[i] < 0x80:
            # Without a branch per byte: where words end cannot be predicted (3 times as fast).
            stop, single = min(end, i + MAX_SHINGLED_CHARS - chars), previous == _SINGLE
            first, letters = i, in_word and not single
            if in_word and single:
                out[count] = word
                count += 1
            word = word if letters else np.uint64(0)
            while i < stop:
                folded = _FOLDED[data[i]]
                if folded == 1:
                    break
                is_letter = folded > 1
                out[count] = word
                count += letters and not is_letter
                if starts.size and is_letter and not letters:
                    starts[count] = i
                word = word * _BASE + np.uint64(folded) if is_letter else np.uint64(0)
                letters = is_letter
                i += 1
            chars += i - first
            in_word, previous = letters, np.uint8(_LETTER if letters else _SEPARATOR)
            continue
        size, kind = _character(data, i, kinds)
        if in_word and (kind != _LETTER or previous == _SINGLE):
            out[count] = word
            count += 1
            word, in_word = np.uint64(0), False
        if kind != _SEPARATOR:
            if not in_word and starts.size:
                starts[count] = i
            for j in range(i, i + size):
                word = word * _BASE + np.uint64(data[j])
            in_word = True
        previous = kind
        chars += 1
        i += size
    if in_word:
        out[count] = word
        count += 1
    for j in range(count):
        out[j] = mix64(out[j])
    return count


@kernel()
def _shingles(words: np.ndarray, count: int, n: int, out: np.ndarray) -> int:
    """Write the 32-bit hash of each n consecutive words to out; returns how many there are."""
    leaving = np.uint64(1)  # base^n, the weight of a word when it leaves the window
    for _ in range(n):
        leaving *= POLYNOMIAL_BASE
    window, total = np.uint64(0), 0
    for i in range(count):
        window = window * POLYNOMIAL_BASE + words[i]
        if i >= n:
            window -= leaving * words[i - n]
        if i >= n - 1 or i == count - 1:
            out[total] = np.uint32(mix64(window))
            total += 1
    return total


@kernel()
def _minima(hashes: np.ndarray, count: int, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """Lower out[p] to the least value of permutation p over hashes[:count], which are finalized in place."""
    for j in range(count):
        hashes[j] = _mix32(hashes[j])
    for first in range(0, count, _TILE):
        tile = hashes[first : min(first + _TILE, count)]
        for p in range(a.size):
            multiplier, offset, least = a[p], b[p], out[p]
            for j in range(tile.size):
                least = min(least, np.uint32(multiplier * tile[j] + offset))
            out[p] = least


@kernel()
def hash_characters(data: np.ndarray, start: int, end: int, out: np.ndarray) -> int:
    """Write a 64-bit hash of each character of data[start:end] to out; returns how many there are."""
    count, i = 0, start
    while i < end and count < MAX_SHINGLED_CHARS:
        value = np.uint64(data[i])
        i += 1
        while i < end and data[i] & 0xC0 == 0x80:
            value = value << np.uint64(8) | np.uint64(data[i])
            i += 1
        out[count] = mix64(value + np.uint64(1))
        count += 1
    return count


@kernel()
def _distinct(hashes: np.ndarray, count: int, seen: np.ndarray, stamp: int) -> int:
    """Move the first of each value of hashes[:count] to the front, in order; returns how many there are.

    `seen` is a hash table of (stamp, value) that is never cleared: other stamps are free slots.
    """
    mask = 1
    while mask < 2 * count:
        mask *= 2
    mask -= 1
    total, upper = 0, np.uint64(stamp) << np.uint64(32)
    for i in range(count):
        entry = upper | np.uint64(hashes[i])
        slot = np.int64(hashes[i]) & mask
        while seen[slot] >> np.uint64(32) == np.uint64(stamp) and seen[slot] != entry:
            slot = (slot + 1) & mask
        if seen[slot] != entry:
            seen[slot] = entry
            hashes[total] = hashes[i]
            total += 1
    return total


@kernel()
def _signatures(
    data: np.ndarray, offsets: np.ndarray, kinds: np.ndarray, words: bool, n: int, a: np.ndarray, b: np.ndarray,
    units: np.ndarray, hashes: np.ndarray, seen: np.ndarray, minhash: np.ndarray, shingle_count: np.ndarray,
    sketches: np.ndarray, sketch_ends: np.ndarray,
) -> None:
    end, no_starts = 0, np.empty(0, np.int64)
    for i in range(offsets.size - 1):
        if words:
            count = hash_words(data, offsets[i], offsets[i + 1], kinds, units, no_starts)
        else:
            count = hash_characters(data, offsets[i], offsets[i + 1], units)
        count = _distinct(hashes, _shingles(units, count, n, hashes), seen, i + 1)
        shingle_count[i] = count
        _minima(hashes, count, a, b, minhash[i])
        if count >= MIN_SHINGLES:
            begin = end
            end += sketch_words(count)
            write_sketch(hashes[:count], sketches[begin:end])
        sketch_ends[i + 1] = end


def _scratch(offsets: np.ndarray) -> int:
    """Words that the longest text can have: a word needs a byte, and no more characters than the limit are read."""
    return int(min(np.diff(offsets).max(initial=1), MAX_SHINGLED_CHARS))


class Signatures(NamedTuple):
    """What near-dup compares of N texts."""

    minhash: np.ndarray  # [N, P] uint32
    shingle_count: np.ndarray  # [N] int32, different shingles
    sketch: Ragged  # uint64 words of the odd sketch; none where a text has fewer than MIN_SHINGLES shingles


def signatures(
    texts: pa.Array | pa.ChunkedArray, shingle: int, permutations: int, used: int | None = None, unit: Unit = "words"
) -> Signatures:
    """Signatures and sketches of N texts; of `permutations` values drawn only the first `used` are computed.

    A text without a word has no shingle and a signature that is all `EMPTY`; one with fewer than `shingle` words is one
    shingle.
    """
    data, offsets = utf8_buffers(texts)
    a, b = (values[:used] for values in permutation_parameters(permutations))
    count, room = offsets.size - 1, _scratch(offsets)
    minhash = np.full((count, a.size), EMPTY, np.uint32)
    shingle_count, ends = np.zeros(count, np.int32), np.zeros(count + 1, np.int64)
    # A set has at most as many elements as its text has bytes, and a sketch fewer than 2 bits for each.
    sketches = np.zeros(count * MIN_WORDS + int(offsets[-1] - offsets[0]) // 32 + 1, np.uint64)
    seen = np.zeros(1 << (2 * room).bit_length(), np.uint64)
    _signatures(data, offsets, character_kinds(), unit == "words", shingle, a, b,
                np.empty(room, np.uint64), np.empty(room, np.uint32), seen, minhash, shingle_count, sketches, ends)
    return Signatures(minhash, shingle_count, Ragged(sketches[: ends[-1]].copy(), ends))


def shingle_hashes(text: str, shingle: int, unit: Unit = "words") -> np.ndarray:
    """[shingles] uint32: the hashes that enter the permutations, in text order (for tests and inspection)."""
    data, offsets = utf8_buffers(pa.array([text], pa.large_string()))
    units, hashes = np.empty(_scratch(offsets), np.uint64), np.empty(_scratch(offsets), np.uint32)
    if unit == "words":
        count = hash_words(data, offsets[0], offsets[1], character_kinds(), units, np.empty(0, np.int64))
    else:
        count = hash_characters(data, offsets[0], offsets[1], units)
    return hashes[: _shingles(units, count, shingle, hashes)]


def estimate_jaccard(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Share of equal values of signatures [..., P]: the estimated Jaccard similarity [...]."""
    return np.mean(left == right, axis=-1)
