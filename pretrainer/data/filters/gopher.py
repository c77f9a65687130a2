"""Gopher's quality rules (Rae et al. 2021, arXiv:2112.11446, section A.1.1): what they measure of each document. The
limits stand in `rules`, its repetition rules in `repetition`; where public implementations disagree, the line here says
so.

Common to all of them:

- A **token** is a maximal run of characters that are not whitespace; a **word** is a token without the punctuation and
  symbols (Unicode categories P and S) at its two ends, so "end." and "end" are one word and "don't" stays whole. A
  token of punctuation alone is no word. The paper does not define words; Dolma uses `str.split()`, datatrove a
  linguistic tokenizer that makes every comma a token of its own, which lowers its share of alphabetic tokens.
- Lengths are characters (Unicode code points), lines end at LF alone.
- A share is a quotient compared with its limit, so that 9 of 10 is exactly 0.9 and passes "at most 0.9".

Kernels run over the UTF-8 bytes of a whole Arrow column.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.characters import ALPHABETIC, KIND, PUNCTUATION, SPACE, character_table, decode
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.data.hashing import FNV_OFFSET, FNV_PRIME, mix64

Measures = dict[str, np.ndarray]
"""Name -> [N] float64, one number per document."""

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")

# Each stop word as the little-endian number of its bytes, which is how the kernel sees a word of up to four bytes.
_STOP_WORD_NUMBERS = np.array([int.from_bytes(word.encode(), "little") for word in STOP_WORDS], np.int64)
_QUALITY = ("tokens", "words", "word_chars", "alphabetic", "stop_words", "chars", "hashes", "ellipses", "lines",
            "bullets", "ellipsis_lines")  # fmt: skip


def quality_measures(texts: pa.Array) -> Measures:
    """The numbers of the quality rules, [N] each; shares of a document without tokens or words are 0."""
    data, offsets = utf8_buffers(texts)
    counts = np.zeros((len(offsets) - 1, len(_QUALITY)), np.int64)
    _quality(data, offsets, character_table(), counts)
    n = dict(zip(_QUALITY, counts.T.astype(np.float64), strict=True))
    tokens = np.maximum(n["tokens"], 1)
    return {
        "gopher_words": n["words"],
        # The mean over words. Dolma takes the median, which long URLs do not move.
        "gopher_mean_word_chars": n["word_chars"] / np.maximum(n["words"], 1),
        # Per token, tokens of punctuation included, as datatrove divides; the paper says "symbol-to-word ratio".
        "gopher_hash_share": n["hashes"] / tokens,
        "gopher_ellipsis_share": n["ellipses"] / tokens,
        # The paper says "starting with a bullet point"; datatrove took only U+2022 at first and the hyphen later, NeMo
        # Curator has a longer list of bullets. Without the hyphen no Markdown list would count. Blank lines are lines.
        "gopher_bullet_line_share": n["bullets"] / n["lines"],
        "gopher_ellipsis_line_share": n["ellipsis_lines"] / n["lines"],
        # The share with an alphabetic character, as the paper has it. datatrove calls this minimum a maximum of
        # non-alpha words; DCLM bounds the complement (0.2). Tokens of punctuation count below, as in datatrove.
        "gopher_alphabetic_share": n["alphabetic"] / tokens,
        # Occurrences, not distinct words, and in lower case only, as in datatrove; DCLM also has count_unique: false.
        # The paper's "at least two of the following" can be read as two different ones.
        "gopher_stop_words": n["stop_words"],
    }


# ---------------------------------------------------------------------------------------------------------- kernels


@kernel()
def _is_stop_word(data: np.ndarray, start: int, end: int) -> bool:
    if end - start > 4:
        return False
    number = np.int64(0)
    for i in range(start, end):
        number |= np.int64(data[i]) << (8 * (i - start))
    for stop_word in _STOP_WORD_NUMBERS:
        if number == stop_word:
            return True
    return False


@kernel()
def scan_tokens(data: np.ndarray, table: np.ndarray, hashes: np.ndarray, chars: np.ndarray, out: np.ndarray) -> int:
    """Hash and length of the first tokens, as many as there is room for; returns how many.

    out[0:6] = tokens, words, characters of words, alphabetic tokens, stop words, characters of the text.
    """
    tokens = words = word_chars = alphabetic = stop_words = text_chars = stored = 0
    token_hash, length, is_alphabetic = FNV_OFFSET, 0, False
    core_start = core_end = -1  # bytes of the word inside the token
    core_first = core_last = 0  # its characters, counted from the token's first
    i = 0
    while i <= data.size:
        size, kind = 1, SPACE
        if i < data.size:
            code_point, size = decode(data, i)
            kind = table[code_point] & KIND
            text_chars += 1
        if kind != SPACE:
            for j in range(i, i + size):
                token_hash = (token_hash ^ np.uint64(data[j])) * FNV_PRIME
            if kind != PUNCTUATION:
                if core_start < 0:
                    core_start, core_first = i, length
                core_end, core_last = i + size, length
                is_alphabetic |= kind == ALPHABETIC
            length += 1
        elif length:
            if stored < hashes.size:
                hashes[stored], chars[stored] = mix64(token_hash), length
                stored += 1
            tokens += 1
            if core_start >= 0:
                words += 1
                word_chars += core_last - core_first + 1
                alphabetic += is_alphabetic
                stop_words += _is_stop_word(data, core_start, core_end)
            token_hash, length, is_alphabetic, core_start = FNV_OFFSET, 0, False, -1
        i += size
    out[0], out[1], out[2], out[3], out[4], out[5] = tokens, words, word_chars, alphabetic, stop_words, text_chars
    return stored


@kernel()
def _symbols(data: np.ndarray, out: np.ndarray) -> None:
    """out[0:2] = occurrences of "#", and of "..." (none overlapping) or U+2026."""
    hashes = ellipses = dots = 0
    for i in range(data.size):
        byte = data[i]
        hashes += byte == 0x23
        dots = dots + 1 if byte == 0x2E else 0
        ellipses += dots == 3
        dots = 0 if dots == 3 else dots
        ellipses += byte == 0xA6 and i >= 2 and data[i - 1] == 0x80 and data[i - 2] == 0xE2
    out[0], out[1] = hashes, ellipses


@kernel()
def _line_marks(data: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """out[0:3] = lines, of them starting with a bullet or hyphen, of them ending in an ellipsis.

    Blanks at both ends of a line do not count, blank lines do, and the end of the text is no further line.
    """
    lines = bullets = ellipses = 0
    start, end, first = 0, 0, np.int64(-1)  # of the line; behind its last character that is no blank; its first one
    i = 0
    while i <= data.size:
        code_point, size = (decode(data, i)) if i < data.size else (np.int64(10), 1)
        if code_point == 10:
            if i < data.size or start < i or lines == 0:
                lines += 1
                bullets += first == 0x2022 or first == 0x2D
                dots = end - start >= 3 and data[end - 1] == 0x2E and data[end - 2] == 0x2E and data[end - 3] == 0x2E
                sign = end - start >= 3 and data[end - 1] == 0xA6 and data[end - 2] == 0x80 and data[end - 3] == 0xE2
                ellipses += dots or sign
            start, end, first = i + 1, i + 1, np.int64(-1)
        elif table[code_point] & KIND != SPACE:
            end = i + size
            first = code_point if first < 0 else first
        i += size
    out[0], out[1], out[2] = lines, bullets, ellipses


@kernel()
def _quality(data: np.ndarray, offsets: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """out [N, 11]: the columns of _QUALITY."""
    nothing, no_chars = np.empty(0, np.uint64), np.empty(0, np.int32)
    for document in range(offsets.size - 1):
        text = data[offsets[document] : offsets[document + 1]]
        scan_tokens(text, table, nothing, no_chars, out[document])
        _symbols(text, out[document, 6:])
        _line_marks(text, table, out[document, 8:])
