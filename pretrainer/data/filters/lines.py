"""What the line rules of C4, FineWeb and RefinedWeb share: kernels over the lines of one document.

A line ends at LF alone (Python's `splitlines`, which C4's code uses, also ends one at form feeds and U+2028). Blanks at
both ends of a line do not count.
"""

from __future__ import annotations

import numpy as np

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.characters import DIGIT, KIND, PUNCTUATION, SENTENCE_END, SPACE, UPPER, decode

# Columns of `scan_line`.
FIRST, END, CHARS, SOLID, WORDS, LONGEST, UPPERS, DIGITS, SENTENCE, FOUND = range(10)
LINE_COLUMNS = 10

_LOWER_A, _LOWER_Z = 0x61, 0x7A
# What a full stop may end without ending a sentence, besides single letters; none is longer than 6 bytes.
_ABBREVIATIONS = (
    "mr mrs ms dr prof sr jr st vs etc e.g i.e a.m p.m u.s u.k no fig al inc ltd co corp jan feb mar apr jun jul aug "
    "sep sept oct nov dec approx dept est gen gov rev vol pp cf"
).split()
_ABBREVIATION_NUMBERS = np.array(sorted(int.from_bytes(a.encode(), "little") for a in _ABBREVIATIONS), np.int64)


@kernel()
def scan_line(
    data: np.ndarray, i: int, table: np.ndarray, moves: np.ndarray, found: np.ndarray, line: np.ndarray
) -> int:
    """Describe the line that begins at byte i; returns the byte behind it (its LF or the end of the text).

    line [10]: first byte and end of what is left without blanks at both ends (equal in a blank line), characters of the
    whole line, of them no blanks, words (runs without whitespace), characters of the longest, upper-case characters,
    digits, whether its last character ends a sentence, bits of the phrases found.
    """
    line[:] = 0
    first, length, state = -1, 0, 0
    line[END] = i
    while i < data.size and data[i] != 10:
        code_point, size = decode(data, i)
        flags = table[code_point]
        line[CHARS] += 1
        if flags & KIND != SPACE:
            first = i if first < 0 else first
            line[END] = i + size
            line[SOLID] += 1
            line[WORDS] += length == 0
            length += 1
            line[LONGEST] = max(line[LONGEST], length)
            line[UPPERS] += (flags & UPPER) != 0
            line[DIGITS] += (flags & DIGIT) != 0
            line[SENTENCE] = (flags & SENTENCE_END) != 0
        else:
            length = 0
        for j in range(i, i + size):
            state = moves[state, data[j]]
            line[FOUND] |= found[state]
        i += size
    line[FIRST] = first if first >= 0 else line[END]
    return i


@kernel()
def _is_abbreviation(data: np.ndarray, first: int, end: int) -> bool:
    """Whether the bytes before a full stop are a single letter or a known abbreviation."""
    if end - first <= 1:
        return end > first
    if end - first > 6:
        return False
    number = np.int64(0)
    for i in range(first, end):
        byte = data[i]
        number |= np.int64(byte | 0x20 if 0x41 <= byte <= 0x5A else byte) << (8 * (i - first))
    slot = np.searchsorted(_ABBREVIATION_NUMBERS, number)
    return bool(slot < _ABBREVIATION_NUMBERS.size and _ABBREVIATION_NUMBERS[slot] == number)


@kernel()
def _closes(byte: np.uint8) -> bool:
    return byte == 0x22 or byte == 0x27 or byte == 0x29 or byte == 0x5D


@kernel()
def count_sentences(data: np.ndarray, first: int, end: int, table: np.ndarray) -> int:
    """Sentences in data[first:end], a line without blanks at its ends: 0 in an empty one, else at least 1.

    A sentence ends at marks of . ? ! (or those of other scripts), quotes and brackets that close behind them, and a
    blank that no lower-case ASCII letter follows; one full stop behind a single letter or an abbreviation ends none.
    Marks of scripts that write no blanks end one by themselves. C4 counts with NLTK's trained Punkt model.
    """
    if first >= end:
        return 0
    sentences, i, word = 0, first, first
    while i < end:
        code_point, size = decode(data, i)
        ascii_mark = code_point == 0x2E or code_point == 0x3F or code_point == 0x21
        wide_mark = code_point >= 0x3000 and (table[code_point] & SENTENCE_END) != 0
        i += size
        if table[code_point] & KIND == SPACE or (table[code_point] & KIND == PUNCTUATION and word == i - size):
            word = i
        if not (ascii_mark or wide_mark or code_point == 0x2026):
            continue
        alone = code_point == 0x2E and not (i < end and data[i] == 0x2E)
        if alone and _is_abbreviation(data, word, i - 1):
            continue
        while i < end and (_closes(data[i]) or data[i] == 0x2E or data[i] == 0x3F or data[i] == 0x21):
            i += 1
        if i >= end:
            return sentences + 1
        if wide_mark:
            sentences += 1
        elif data[i] == 0x20:
            while i < end and data[i] == 0x20:
                i += 1
            word = i
            sentences += not _LOWER_A <= data[i] <= _LOWER_Z
    return sentences + 1


@kernel()
def copy_line(data: np.ndarray, first: int, end: int, out: np.ndarray, at: int) -> int:
    """Append data[first:end] behind an LF, or at the beginning of a document (at = 0); returns the new length."""
    if at:
        out[at] = 10
        at += 1
    for i in range(first, end):
        out[at] = data[i]
        at += 1
    return at


@kernel()
def power_of_two_above(number: int) -> int:
    size = 1
    while size <= number:
        size *= 2
    return size
