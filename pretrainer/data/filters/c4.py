"""C4's line and page rules (Raffel et al. 2020, arXiv:1910.10683, section 2.2, as coded in TensorFlow Datasets'
c4_utils): lines that look like prose are kept, and pages with too little of it are dropped.

The word list of the paper is not among them (toxicity has its own filter). FineWeb leaves the rule of terminal
punctuation out, which drops most: 30 % of its tokens. Departures: see `lines` for what a line and a sentence is; blanks
that a removed citation leaves at a line's end are removed before its end is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.characters import character_table
from pretrainer.data.filters.lines import (
    END,
    FIRST,
    FOUND,
    LINE_COLUMNS,
    LONGEST,
    WORDS,
    copy_line,
    count_sentences,
    scan_line,
)
from pretrainer.data.filters.normalise import from_utf8_buffers, utf8_buffers
from pretrainer.data.filters.phrases import automaton

POLICY_PHRASES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_POLICY, _JAVASCRIPT, _LOREM = 1, 2, 4
_PHRASES = automaton({0: POLICY_PHRASES, 1: ("javascript",), 2: ("lorem ipsum",)})

LINE_LIMITS: Mapping[str, float] = {
    "c4_min_line_words": 3,
    "c4_max_word_chars": 1000,
    "c4_terminal_punctuation": 1,
    "c4_policy_lines": 1,
    "c4_javascript_lines": 1,
    "c4_citations": 1,
}
"""What decides about lines; 0 turns a rule off."""
_COLUMNS = ("lines", "kept_lines", "sentences", "lorem_ipsum", "curly_brackets")


def c4_lines(texts: pa.Array, limits: Mapping[str, float]) -> tuple[dict[str, np.ndarray], pa.Array]:
    """(measures [N], texts with the kept lines alone and without citation marks). limits: those of LINE_LIMITS."""
    data, offsets = utf8_buffers(texts)
    counts = np.zeros((len(offsets) - 1, len(_COLUMNS)), np.int64)
    kept, kept_offsets = np.empty(offsets[-1] - offsets[0], np.uint8), np.zeros_like(offsets)
    chosen = np.array([limits[name] for name in LINE_LIMITS], np.float64)
    _c4(data, offsets, character_table(), *_PHRASES, chosen, counts, kept, kept_offsets)
    measures = {f"c4_{name}": column.astype(np.float64) for name, column in zip(_COLUMNS, counts.T, strict=True)}
    return measures, from_utf8_buffers(kept, kept_offsets)


@kernel()
def _citation(data: np.ndarray, i: int, end: int) -> int:
    """Bytes of the citation mark at data[i]: [12], [], [edit] or [citation needed]; 0 if there is none."""
    if data[i] != 0x5B:
        return 0
    j = i + 1
    while j < end and 0x30 <= data[j] <= 0x39:
        j += 1
    if j < end and data[j] == 0x5D:
        return j + 1 - i
    for mark in (b"[edit]", b"[citation needed]"):
        if i + len(mark) <= end:
            same = True
            for j in range(len(mark)):
                same &= data[i + j] == mark[j]
            if same:
                return len(mark)
    return 0


@kernel()
def _copy_without_citations(data: np.ndarray, first: int, end: int, out: np.ndarray) -> int:
    """Write data[first:end] without citation marks and without blanks at its end; returns its length."""
    size, i = 0, first
    while i < end:
        mark = _citation(data, i, end)
        if mark == 0:
            out[size] = data[i]
            size += 1
        i += max(mark, 1)
    while size and out[size - 1] == 0x20:
        size -= 1
    return size


@kernel()
def _ends_like_prose(line: np.ndarray) -> bool:
    """Ends with . ? ! " or ', but not with "..."."""
    if line.size == 0:
        return False
    last = line[-1]
    dots = line.size >= 3 and last == 0x2E and line[-2] == 0x2E and line[-3] == 0x2E
    return (last == 0x2E or last == 0x3F or last == 0x21 or last == 0x22 or last == 0x27) and not dots


@kernel()
def _c4(
    data: np.ndarray, offsets: np.ndarray, table: np.ndarray, moves: np.ndarray, found: np.ndarray, limits: np.ndarray,
    out: np.ndarray, kept: np.ndarray, kept_offsets: np.ndarray,
) -> None:  # fmt: skip
    """out [N, 5]: the columns of _COLUMNS; kept and kept_offsets: the texts of the kept lines."""
    min_words, max_word_chars, punctuation, policy, javascript, citations = limits
    line, bare = np.zeros(LINE_COLUMNS, np.int64), np.empty(0, np.uint8)
    for document in range(offsets.size - 1):
        text = data[offsets[document] : offsets[document + 1]]
        if text.size > bare.size:
            bare = np.empty(text.size, np.uint8)
        room, at, i, row = kept[kept_offsets[document] :], 0, 0, out[document]
        while i < text.size:
            i = scan_line(text, i, table, moves, found, line) + 1
            row[0] += 1
            if (max_word_chars and line[LONGEST] > max_word_chars) or line[WORDS] < min_words:
                continue
            if citations:
                size = _copy_without_citations(text, line[FIRST], line[END], bare)
                piece = bare[:size]
            else:
                piece = text[line[FIRST] : line[END]]
            if punctuation and not _ends_like_prose(piece):
                continue
            row[3] += (line[FOUND] & _LOREM) != 0
            if javascript and line[FOUND] & _JAVASCRIPT:
                continue
            row[4] += np.any(piece == 0x7B)
            if policy and line[FOUND] & _POLICY:
                continue
            row[1] += 1
            row[2] += count_sentences(piece, 0, piece.size, table)
            at = copy_line(piece, 0, piece.size, room, at)
        kept_offsets[document + 1] = kept_offsets[document] + at
