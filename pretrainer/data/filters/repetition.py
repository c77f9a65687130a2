"""Gopher's repetition rules (Rae et al. 2021, arXiv:2112.11446, Table A1): what they measure of each document.

Tokens, characters and shares are those of `gopher`. n-grams, lines and paragraphs are compared by 64-bit hashes: 2^-64
times the number of pairs is the chance that two are taken for one.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.characters import KIND, SPACE, character_table, decode
from pretrainer.data.filters.gopher import Measures, scan_tokens
from pretrainer.data.filters.lines import power_of_two_above
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.data.hashing import FNV_OFFSET, FNV_PRIME, POLYNOMIAL_BASE, mix64

TOP_NGRAMS, REPEATED_NGRAMS = (2, 3, 4), (5, 6, 7, 8, 9, 10)
MAX_NGRAM_TOKENS = 1 << 18
"""Repeated n-grams are looked for among the first 262,144 tokens, so that memory is bounded for a text of any length;
Gopher's own limit of 100,000 words drops what is longer."""
_PIECES = ("paragraphs", "duplicate_paragraphs", "duplicate_paragraph_chars", "lines", "duplicate_lines",
           "duplicate_line_chars")  # fmt: skip


def repetition_measures(texts: pa.Array) -> Measures:
    """The shares of Table A1, [N] each; case and punctuation count. Shares of a blank text are 0.

    Paragraphs end at an empty line. Empty lines are neither lines nor repeats of each other (datatrove keeps an empty
    one at each end of the text; NeMo Curator bounds the complements, unique lines >= 0.7 and unique chars >= 0.8).
    Two departures from datatrove: the most frequent n-gram must occur twice (a text of three words is not repetitive
    because its only 3-gram is all of it), and repeats are compared word by word, not as joined letters. Shared with
    it: a repeat inside a skipped stretch is not entered, and repeated n-grams count letters without the blanks.
    """
    data, offsets = utf8_buffers(texts)
    documents = len(offsets) - 1
    pieces = np.zeros((documents, len(_PIECES)), np.int64)
    ngrams = np.zeros((documents, 1 + len(TOP_NGRAMS) + len(REPEATED_NGRAMS)), np.int64)
    _pieces(data, offsets, character_table(), pieces)
    _ngrams(data, offsets, character_table(), ngrams)
    n = dict(zip(_PIECES, pieces.T.astype(np.float64), strict=True))
    chars, grams = np.maximum(ngrams[:, 0], 1).astype(np.float64), ngrams[:, 1:].T
    paragraphs, lines = np.maximum(n["paragraphs"], 1), np.maximum(n["lines"], 1)
    names = [f"gopher_top_{n}gram_share" for n in TOP_NGRAMS]
    names += [f"gopher_repeated_{n}gram_share" for n in REPEATED_NGRAMS]
    return {
        "gopher_duplicate_paragraph_share": n["duplicate_paragraphs"] / paragraphs,
        "gopher_duplicate_paragraph_char_share": n["duplicate_paragraph_chars"] / chars,
        "gopher_duplicate_line_share": n["duplicate_lines"] / lines,
        "gopher_duplicate_line_char_share": n["duplicate_line_chars"] / chars,
        **{name: column / chars for name, column in zip(names, grams, strict=True)},
    }


@kernel()
def count_duplicates(hashes: np.ndarray, chars: np.ndarray, slots: np.ndarray, out: np.ndarray) -> None:
    """out[0:3] = pieces, of them seen before, characters of those. slots: a power of two above the number of pieces."""
    size = power_of_two_above(2 * hashes.size)
    seen, mask = slots[:size], np.uint64(size - 1)
    seen[:] = 0
    duplicates = duplicate_chars = 0
    for i in range(hashes.size):
        key = hashes[i] | np.uint64(1)  # 0 marks a free slot
        slot = (key >> np.uint64(1)) & mask
        while seen[slot] != 0 and seen[slot] != key:
            slot = (slot + np.uint64(1)) & mask
        if seen[slot] == key:
            duplicates += 1
            duplicate_chars += chars[i]
        seen[slot] = key
    out[0], out[1], out[2] = hashes.size, duplicates, duplicate_chars


@kernel()
def _blank_ends(data: np.ndarray, table: np.ndarray) -> tuple[int, int]:
    """(first byte of the first character that is no whitespace, byte behind the last one)."""
    first, end, i = -1, 0, 0
    while i < data.size:
        code_point, size = decode(data, i)
        if table[code_point] & KIND != SPACE:
            first = i if first < 0 else first
            end = i + size
        i += size
    return max(first, 0), end


@kernel()
def _split(data: np.ndarray, first: int, end: int, least: int, hashes: np.ndarray, chars: np.ndarray) -> int:
    """Hash and characters of the pieces of data[first:end] between runs of at least `least` LFs; returns how many.

    A piece keeps the LFs inside it; a piece without a character is none.
    """
    pieces, piece_hash, length, feeds = 0, FNV_OFFSET, 0, 0
    for i in range(first, end + 1):
        if i < end and data[i] == 10:
            feeds += 1
            continue
        if (feeds >= least or i == end) and length:
            hashes[pieces], chars[pieces] = mix64(piece_hash), length
            pieces, piece_hash, length = pieces + 1, FNV_OFFSET, 0
        elif feeds and length:
            for _ in range(feeds):
                piece_hash = (piece_hash ^ np.uint64(10)) * FNV_PRIME
            length += feeds
        feeds = 0
        if i < end:
            piece_hash = (piece_hash ^ np.uint64(data[i])) * FNV_PRIME
            length += data[i] & 0xC0 != 0x80
    return pieces


@kernel()
def _most_lines(data: np.ndarray, offsets: np.ndarray) -> int:
    """Lines of the document that has most."""
    most = 0
    for document in range(offsets.size - 1):
        most = max(most, int(np.count_nonzero(data[offsets[document] : offsets[document + 1]] == 10)))
    return most + 1


@kernel()
def _pieces(data: np.ndarray, offsets: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """out [N, 6]: the columns of _PIECES."""
    most = _most_lines(data, offsets)
    hashes, chars = np.empty(most, np.uint64), np.empty(most, np.int32)
    slots = np.empty(power_of_two_above(2 * most), np.uint64)
    for document in range(offsets.size - 1):
        text = data[offsets[document] : offsets[document + 1]]
        first, end = _blank_ends(text, table)
        if first < end:
            count = _split(text, first, end, 2, hashes, chars)
            count_duplicates(hashes[:count], chars[:count], slots, out[document])
            count = _split(text, 0, text.size, 1, hashes, chars)
            count_duplicates(hashes[:count], chars[:count], slots, out[document, 3:])


@kernel()
def _ngram_ids(hashes: np.ndarray, n: int, slots: np.ndarray, firsts: np.ndarray, ids: np.ndarray) -> None:
    """ids[i] = the first position of an n-gram equal to the one at position i.

    slots uint64 and firsts int32, both a power of two long and above the number of n-grams, are the hash table.
    """
    slots[:] = 0
    mask = np.uint64(slots.size - 1)
    for i in range(hashes.size - n + 1):
        key = np.uint64(0)
        for j in range(n):
            key = key * POLYNOMIAL_BASE + hashes[i + j]
        key = mix64(key) | np.uint64(1)  # 0 marks a free slot
        slot = (key >> np.uint64(1)) & mask
        while slots[slot] != 0 and slots[slot] != key:
            slot = (slot + np.uint64(1)) & mask
        if slots[slot] == 0:
            slots[slot], firsts[slot] = key, i
        ids[i] = firsts[slot]


@kernel()
def _top_ngram_chars(chars: np.ndarray, ids: np.ndarray, counts: np.ndarray, n: int) -> int:
    """Characters of the most frequent n-gram (blanks inside included) times its count; 0 if none occurs twice."""
    counts[: chars.size] = 0
    best, best_count = 0, 1
    for i in range(chars.size - n + 1):
        counts[ids[i]] += 1
    for i in range(chars.size - n + 1):
        if counts[i] > best_count:
            best, best_count = i, counts[i]
    return best_count * (chars[best : best + n].sum() + n - 1) if best_count > 1 else 0


@kernel()
def _repeated_ngram_chars(chars: np.ndarray, ids: np.ndarray, seen: np.ndarray, n: int) -> int:
    """Characters in n-grams seen before, none counted twice: after a repeat the scan goes on behind it."""
    seen[: chars.size] = 0
    total = i = 0
    while i < chars.size - n + 1:
        if seen[ids[i]]:
            total += chars[i : i + n].sum()
            i += n
        else:
            seen[ids[i]] = 1
            i += 1
    return total


@kernel()
def _ngrams(data: np.ndarray, offsets: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """out [N, 10]: characters of the text, of the top n-grams for n = 2 to 4, in repeated n-grams for n = 5 to 10."""
    longest = np.max(np.diff(offsets)) if offsets.size > 1 else 0
    room = min(longest // 2 + 1, MAX_NGRAM_TOKENS)  # two tokens are at least one byte apart
    size = power_of_two_above(2 * room)
    hashes, lengths, counts = np.empty(room, np.uint64), np.empty(room, np.int32), np.zeros(6, np.int64)
    slots, firsts = np.empty(size, np.uint64), np.empty(size, np.int32)
    ids, seen = np.empty(room, np.int32), np.empty(room, np.int32)
    for document in range(offsets.size - 1):
        text = data[offsets[document] : offsets[document + 1]]
        tokens = scan_tokens(text, table, hashes, lengths, counts)
        out[document, 0], chars = counts[5], lengths[:tokens]
        size = power_of_two_above(2 * tokens)
        for n in range(2, 11):
            _ngram_ids(hashes[:tokens], n, slots[:size], firsts[:size], ids)
            if n < 5:
                out[document, n - 1] = _top_ngram_chars(chars, ids, seen, n)
            else:
                out[document, n - 1] = _repeated_ngram_chars(chars, ids, seen, n)
