"""FineWeb's own rules (Penedo et al. 2024, arXiv:2406.17557, section 3.6), after Gopher's and C4's in its recipe.

Lines are those that are not blank. The share of duplicated characters has the limit 0.01 of its code; its report says
0.1. Departures: blanks at a line's end do not hide its last character; its word tokenizer counts every comma as a word,
so the list rule here (LFs per token, limit 0.3) is a little stricter.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.characters import character_table
from pretrainer.data.filters.lines import CHARS, LINE_COLUMNS, SENTENCE, WORDS, power_of_two_above, scan_line
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.data.filters.phrases import automaton
from pretrainer.data.filters.repetition import count_duplicates
from pretrainer.data.hashing import hash_bytes

SHORT_LINE_CHARS = 30
_NO_PHRASES = automaton({})
_COLUMNS = ("lines", "ended", "short", "duplicate_chars", "chars", "feeds", "tokens")


def fineweb_measures(texts: pa.Array) -> dict[str, np.ndarray]:
    """The shares of FineWeb's rules, [N] each; 0 in a blank text."""
    data, offsets = utf8_buffers(texts)
    counts = np.zeros((len(offsets) - 1, len(_COLUMNS)), np.int64)
    _fineweb(data, offsets, character_table(), *_NO_PHRASES, counts)
    n = dict(zip(_COLUMNS, counts.T.astype(np.float64), strict=True))
    lines = np.maximum(n["lines"], 1)
    return {
        "fineweb_lines": n["lines"],
        "fineweb_ended_line_share": n["ended"] / lines,
        "fineweb_short_line_share": n["short"] / lines,
        "fineweb_duplicate_char_share": n["duplicate_chars"] / np.maximum(n["chars"], 1),
        "fineweb_newlines_per_token": n["feeds"] / np.maximum(n["tokens"], 1),
    }


@kernel()
def _fineweb(
    data: np.ndarray, offsets: np.ndarray, table: np.ndarray, moves: np.ndarray, found: np.ndarray, out: np.ndarray
) -> None:
    """out [N, 7]: the columns of _COLUMNS."""
    line, hashes, chars = np.zeros(LINE_COLUMNS, np.int64), np.empty(1024, np.uint64), np.empty(1024, np.int32)
    slots, duplicates = np.empty(4096, np.uint64), np.zeros(3, np.int64)
    for document in range(offsets.size - 1):
        text, row = data[offsets[document] : offsets[document + 1]], out[document]
        feeds = np.count_nonzero(text == 10)
        if feeds + 1 > hashes.size:
            hashes, chars = np.empty(2 * feeds, np.uint64), np.empty(2 * feeds, np.int32)
            slots = np.empty(power_of_two_above(4 * feeds), np.uint64)
        lines = i = 0
        while i < text.size:
            end = scan_line(text, i, table, moves, found, line)
            row[4] += line[CHARS]
            row[6] += line[WORDS]
            if line[WORDS]:
                hashes[lines], chars[lines] = hash_bytes(text[i:end]), line[CHARS]
                lines += 1
                row[1] += line[SENTENCE]
                row[2] += line[CHARS] <= SHORT_LINE_CHARS
            i = end + 1
        count_duplicates(hashes[:lines], chars[:lines], slots, duplicates)
        row[0], row[3], row[5] = lines, duplicates[2], feeds
