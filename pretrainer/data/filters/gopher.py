"""Gopher's quality and repetition rules (Rae et al. 2021, arXiv:2112.11446, section A.1.1 and Table A1): what they
measure of each document. The limits stand in `rules`; where public implementations disagree, the line here says so.

Common to all of them:

- A **token** is a maximal run of characters that are not whitespace; a **word** is a token without the punctuation and
  symbols (Unicode categories P and S) at its two ends, so "end." and "end" are one word and "don't" stays whole. A
  token of punctuation alone is no word. The paper does not define words; Dolma uses `str.split()`, datatrove a
  linguistic tokenizer that makes every comma a token of its own, which lowers its share of alphabetic tokens.
- Lengths are characters (Unicode code points), lines end at LF alone.
- A share is a quotient compared with its limit, so that 9 of 10 is exactly 0.9 and passes "at most 0.9".

Kernels run over the UTF-8 bytes of a whole Arrow column. n-grams, lines and paragraphs are compared by 64-bit hashes:
2^-64 times the number of pairs is the chance that two are taken for one.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.characters import ALPHABETIC, KIND, PUNCTUATION, SPACE, character_table, decode
from pretrainer.data.filters.lines import power_of_two_above
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.data.hashing import FNV_OFFSET, FNV_PRIME, POLYNOMIAL_BASE, mix64

Measures = dict[str, np.ndarray]
"""Name -> [N] float64, one number per document."""

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
TOP_NGRAMS, REPEATED_NGRAMS = (2, 3, 4), (5, 6, 7, 8, 9, 10)
MAX_NGRAM_TOKENS = 1 << 18
"""Repeated n-grams are looked for among the first 262,144 tokens, so that memory is bounded for a text of any length;
Gopher's own limit of 100,000 words drops what is longer."""

# Each stop word as the little-endian number of its bytes, which is how the kernel sees a word of up to four bytes.
_STOP_WORD_NUMBERS = np.array([int.from_bytes(word.encode(), "little") for word in STOP_WORDS], np.int64)
_QUALITY = ("tokens", "words", "word_chars", "alphabetic", "stop_words", "chars", "hashes", "ellipses", "lines",
            "bullets", "ellipsis_lines")  # fmt: skip
_PIECES = ("paragraphs", "duplicate_paragraphs", "duplicate_paragraph_chars", "lines", "duplicate_lines",
           "duplicate_line_chars")  # fmt: skip


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
