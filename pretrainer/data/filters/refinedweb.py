"""RefinedWeb's line-wise corrections (Penedo et al. 2023, arXiv:2306.01116, section 3.2 and appendix G.2): lines of a
page's furniture go, and pages that lose much of their words.

A line goes when it is mainly upper case, when it is digits alone, when it counts something ("3 likes") or when it has
one word. A short line, of up to 10 words, loses "items in cart" anywhere, "read more..." at its end and "sign-in" at
its beginning, and goes where nothing else was in it. Blank lines stay, but none at the ends. A page that lost more than
5 % of its words is dropped.

The paper has no numbers for "mainly" and no list of what is counted, and its code was not published. Both are those of
DCLM (arXiv:2406.11794), checked against its public code (baselines/baselines_configs/dclm_baseline_refinedweb.yaml and
baselines/mappers/modifiers.py): more than half of all characters, blanks included, and its twelve words. Known
disagreements: DCLM keeps a line of numbers with blanks between them ("2020 11 21"), takes any three characters for the
full stops of "read more..." (its pattern is not escaped) and counts words without punctuation. TxT360's rule for upper
case is the same as here; others put it at 0.7 or 0.8.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.characters import KIND, PUNCTUATION, SPACE, character_table, decode
from pretrainer.data.filters.lines import (
    CHARS,
    DIGITS,
    END,
    FIRST,
    FOUND,
    LINE_COLUMNS,
    SOLID,
    UPPERS,
    WORDS,
    copy_line,
    scan_line,
)
from pretrainer.data.filters.normalise import from_utf8_buffers, utf8_buffers
from pretrainer.data.filters.phrases import automaton

COUNTED = (
    "likes shares comments retweets reposts quotes bookmarks upvotes downvotes downloads views followers"
).split()
LINE_LIMITS: Mapping[str, float] = {
    "refinedweb_max_uppercase_share": 0.5,
    "refinedweb_min_line_words": 2,
    "refinedweb_numeric_lines": 1,
    "refinedweb_counter_lines": 1,
    "refinedweb_max_furniture_words": 10,
}
"""What decides about lines; 0 turns a rule off."""
_COUNTED_BYTES = tuple(word.encode() for word in COUNTED)
_CART, _SIGN_IN, _READ_MORE, _COUNTED = 1, 2, 4, 8
_PHRASES = automaton({0: ("items in cart",), 1: ("sign-in",), 2: ("read more...",), 3: COUNTED})


def refinedweb_lines(texts: pa.Array, limits: Mapping[str, float]) -> tuple[dict[str, np.ndarray], pa.Array]:
    """(measures [N], texts without the lines that go). limits: those of LINE_LIMITS."""
    data, offsets = utf8_buffers(texts)
    counts = np.zeros((len(offsets) - 1, 2), np.int64)
    kept, kept_offsets = np.empty(offsets[-1] - offsets[0], np.uint8), np.zeros_like(offsets)
    chosen = np.array([limits[name] for name in LINE_LIMITS], np.float64)
    _refinedweb(data, offsets, character_table(), *_PHRASES, chosen, counts, kept, kept_offsets)
    words, removed = counts.T.astype(np.float64)
    return {"refinedweb_removed_word_share": removed / np.maximum(words, 1)}, from_utf8_buffers(kept, kept_offsets)


@kernel()
def _says(data: np.ndarray, at: int, phrase: bytes) -> bool:
    """Whether the bytes from `at` on are this phrase of lower-case ASCII, in either case."""
    if at < 0 or at + len(phrase) > data.size:
        return False
    for i in range(len(phrase)):
        byte = data[at + i]
        if (byte | 0x20 if 0x41 <= byte <= 0x5A else byte) != phrase[i]:
            return False
    return True


@kernel()
def _skip(data: np.ndarray, i: int, end: int, table: np.ndarray, blanks_only: bool) -> int:
    """The first byte from i on that is no blank, or neither blank nor punctuation."""
    while i < end:
        code_point, size = decode(data, i)
        kind = table[code_point] & KIND
        if kind != SPACE and (blanks_only or kind != PUNCTUATION or code_point == 0x5F):
            break
        i += size
    return i


@kernel()
def _is_counter(data: np.ndarray, first: int, end: int, table: np.ndarray) -> bool:
    """A number such as 3, 1,204 or 2.5K, then one of COUNTED, and nothing else but punctuation around them."""
    i = _skip(data, first, end, table, False)
    if i >= end or not 0x30 <= data[i] <= 0x39:
        return False
    while i < end and (0x30 <= data[i] <= 0x39 or data[i] == 0x2C or data[i] == 0x2E):
        i += 1
    if i < end and (_says(data, i, b"k") or _says(data, i, b"m") or _says(data, i, b"b")):
        i += 1
    word = _skip(data, i, end, table, True)
    behind = word
    while behind < end and 0x61 <= (data[behind] | 0x20) <= 0x7A:
        behind += 1
    return word > i and _is_counted(data[word:behind]) and _skip(data, behind, end, table, False) >= end


@kernel()
def _is_counted(word: np.ndarray) -> bool:
    for counted in _COUNTED_BYTES:
        if word.size == len(counted) and _says(word, 0, counted):
            return True
    return False


@kernel()
def _is_blank(line: np.ndarray, i: int, size: int) -> bool:
    return 0 <= i < size and (line[i] == 0x20 or line[i] == 0x09)


@kernel()
def _cut(line: np.ndarray, size: int, first: int, end: int) -> int:
    """Take line[first:end] out of line[:size] in place; returns the new size."""
    for i in range(end, size):
        line[first + i - end] = line[i]
    return size - (end - first)


@kernel()
def _without_furniture(
    text: np.ndarray, table: np.ndarray, moves: np.ndarray, found: np.ndarray, line: np.ndarray
) -> int:
    """Take the phrases out of a line that is all of `text`, each with a blank beside it, in place.

    Returns the new size; `line` then describes what is left.
    """
    size, i, done = text.size, 0, 0
    while i < size:
        if _says(text[:size], i, b"items in cart"):
            done = i - (i > done and _is_blank(text, i - 1, size))
            size, i = _cut(text, size, done, i + 13), done
        else:
            i += 1
    scan_line(text[:size], 0, table, moves, found, line)
    if _says(text[:size], line[END] - 12, b"read more..."):
        size = line[END] - 12
        size -= _is_blank(text, size - 1, size)
        scan_line(text[:size], 0, table, moves, found, line)
    if _says(text[:size], line[FIRST], b"sign-in"):
        first = line[FIRST]
        size = _cut(text, size, first, first + 7 + _is_blank(text, first + 7, size))
        scan_line(text[:size], 0, table, moves, found, line)
    return size


@kernel()
def _refinedweb(
    data: np.ndarray, offsets: np.ndarray, table: np.ndarray, moves: np.ndarray, found: np.ndarray, limits: np.ndarray,
    out: np.ndarray, kept: np.ndarray, kept_offsets: np.ndarray,
) -> None:  # fmt: skip
    """out [N, 2]: words, and words that go; kept and kept_offsets: the texts without them."""
    uppercase, min_words, numeric, counters, furniture_words = limits
    line = np.zeros(LINE_COLUMNS, np.int64)
    for document in range(offsets.size - 1):
        text = data[offsets[document] : offsets[document + 1]]
        room, at, i, row = kept[kept_offsets[document] :], 0, 0, out[document]
        while i < text.size:
            start = i
            i = scan_line(text, i, table, moves, found, line) + 1
            words = line[WORDS]
            shouts = uppercase > 0 and line[UPPERS] > uppercase * line[CHARS]
            numbers = numeric > 0 and 0 < line[SOLID] == line[DIGITS]
            counts = counters > 0 and line[FOUND] & _COUNTED != 0
            counts = counts and _is_counter(text, line[FIRST], line[END], table)
            row[0] += words
            if shouts or numbers or counts or 0 < words < min_words:
                row[1] += words
                continue
            before, at = at, copy_line(text, start, i - 1, room, at)
            if words <= furniture_words and line[FOUND] & (_CART | _SIGN_IN | _READ_MORE):
                first = before + (before > 0)
                at = first + _without_furniture(room[first:at], table, moves, found, line)
                row[1] += words - line[WORDS]
                at = at if line[WORDS] else before
        while at and room[at - 1] == 10:
            at -= 1
        kept_offsets[document + 1] = kept_offsets[document] + at
