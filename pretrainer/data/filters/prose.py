"""Quality and repetition rules for prose: Gopher (Rae et al. 2021, arXiv:2112.11446, Table A1 and section A.1.1).

Thresholds and the order inside each filter are those of the paper as coded by datatrove; where public implementations
disagree, the line says so and names the choice made here. Common to all rules:

- A **token** is a maximal run of characters that are not whitespace; a **word** is a token without the punctuation and
  symbols (Unicode categories P and S) at its two ends, so "end." and "end" are one word and "don't" stays whole. A
  token of punctuation alone is no word. The paper does not define words; Dolma uses `str.split()`, datatrove a
  linguistic tokenizer that makes every comma a token of its own, which lowers its share of alphabetic tokens.
- Lengths are characters (Unicode code points), lines end at LF alone.
- A share is a quotient compared with the limit, so that 9 of 10 is exactly 0.9 and passes "at most 0.9".

Words and n-grams are counted by compiled kernels over UTF-8 bytes, n-grams by 64-bit hashes: 2^-64 times the number of
pairs is the chance that two are taken for one.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import NamedTuple

import numpy as np

from pretrainer.data.compiled import kernel
from pretrainer.data.hashing import FNV_OFFSET, FNV_PRIME, POLYNOMIAL_BASE, mix64

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
TOP_NGRAM_SHARES = ((2, 0.20), (3, 0.18), (4, 0.16))
REPEATED_NGRAM_SHARES = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))

_SPACE, _PUNCTUATION, _ALPHABETIC, _OTHER = 0, 1, 2, 3
# Each stop word as the little-endian number of its bytes, which is how the kernel sees a word of up to four bytes.
_STOP_WORD_NUMBERS = np.array([int.from_bytes(word.encode(), "little") for word in STOP_WORDS], np.int64)


class TokenCounts(NamedTuple):
    """What the rules need of a document's tokens; T tokens."""

    tokens: int
    words: int
    word_chars: int
    alphabetic: int  # tokens with an alphabetic character
    stop_words: int
    hashes: np.ndarray  # [T] uint64, of the whole token
    chars: np.ndarray  # [T] int64, length of the whole token


@functools.cache
def _character_kinds() -> np.ndarray:
    """[0x110000] uint8: kind of each code point, by this Python's Unicode data (part of the run's fingerprint)."""
    characters = np.arange(0x110000, dtype=np.uint32).view("U1")
    kinds = np.full(0x110000, _OTHER, np.uint8)
    # Above plane 1 there are ideographs, tags and private use: no punctuation and no symbols.
    low = [unicodedata.category(chr(code_point))[0] for code_point in range(0x20000)]
    kinds[np.flatnonzero(np.isin(low, ["P", "S"]))] = _PUNCTUATION
    kinds[np.strings.isalpha(characters)] = _ALPHABETIC
    kinds[np.strings.isspace(characters)] = _SPACE
    return kinds


@kernel()
def _decode(data: np.ndarray, i: int) -> tuple[np.int64, int]:
    """(code point, bytes) of the non-ASCII character whose first byte is data[i]."""
    lead = np.int64(data[i])
    second = np.int64(data[i + 1] & 0x3F)
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | second, 2
    third = np.int64(data[i + 2] & 0x3F)
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | second << 6 | third, 3
    return (lead & 0x07) << 18 | second << 12 | third << 6 | np.int64(data[i + 3] & 0x3F), 4


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
def _scan(data: np.ndarray, kinds: np.ndarray, hashes: np.ndarray, chars: np.ndarray) -> tuple[int, int, int, int, int]:
    """Write hash and length of each token; returns (tokens, words, word_chars, alphabetic, stop_words)."""
    tokens = words = word_chars = alphabetic = stop_words = 0
    token_hash, length, is_alphabetic = FNV_OFFSET, 0, False
    core_start = core_end = -1  # bytes of the word inside the token
    core_first = core_last = 0  # its characters, counted from the token's first
    i = 0
    while i <= data.size:
        size, kind = 1, np.uint8(_SPACE)
        if i < data.size:
            if data[i] < 0x80:
                kind = kinds[data[i]]
            else:
                code_point, size = _decode(data, i)
                kind = kinds[code_point]
        if kind != _SPACE:
            for j in range(i, i + size):
                token_hash = (token_hash ^ np.uint64(data[j])) * FNV_PRIME
            if kind != _PUNCTUATION:
                if core_start < 0:
                    core_start, core_first = i, length
                core_end, core_last = i + size, length
                is_alphabetic |= kind == _ALPHABETIC
            length += 1
        elif length:
            hashes[tokens], chars[tokens] = mix64(token_hash), length
            tokens += 1
            if core_start >= 0:
                words += 1
                word_chars += core_last - core_first + 1
                alphabetic += is_alphabetic
                stop_words += _is_stop_word(data, core_start, core_end)
            token_hash, length, is_alphabetic, core_start = FNV_OFFSET, 0, False, -1
        i += size
    return tokens, words, word_chars, alphabetic, stop_words


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
    counts[:] = 0
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
    seen[:] = 0
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
def _repetition(
    hashes: np.ndarray, chars: np.ndarray, top: np.ndarray, repeated: np.ndarray,
    slots: np.ndarray, firsts: np.ndarray, ids: np.ndarray, counts: np.ndarray,
) -> None:
    """Fill [most frequent n-gram chars for n = 2, 3, 4] and [repeated n-gram chars for n = 5 to 10]."""
    for k in range(top.size):
        _ngram_ids(hashes, k + 2, slots, firsts, ids)
        top[k] = _top_ngram_chars(chars, ids, counts, k + 2)
    for k in range(repeated.size):
        _ngram_ids(hashes, k + 5, slots, firsts, ids)
        repeated[k] = _repeated_ngram_chars(chars, ids, counts, k + 5)


def _utf8(text: str) -> np.ndarray:
    """[bytes] uint8; lone surrogates, which Arrow cannot hold but a caller's string can, count as characters."""
    return np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)


def token_counts(text: str) -> TokenCounts:
    """Tokens of one document; see the module docstring for what a token and a word is."""
    data = _utf8(text)
    room = data.size // 2 + 1  # two tokens are at least one byte apart
    hashes, chars = np.empty(room, np.uint64), np.empty(room, np.int64)
    tokens, words, word_chars, alphabetic, stop_words = _scan(data, _character_kinds(), hashes, chars)
    return TokenCounts(tokens, words, word_chars, alphabetic, stop_words, hashes[:tokens], chars[:tokens])


def _lines(text: str) -> list[str]:
    """Lines without their LF, blank ones included (as datatrove counts them); the end of text is no further line."""
    return text.removesuffix("\n").split("\n")


def gopher_quality(text: str) -> str | None:
    """First quality rule that the text fails, or None (Rae et al. 2021, section A.1.1 "Quality Filtering")."""
    count = token_counts(text)
    if count.words < 50:
        return "gopher_too_few_words"
    if count.words > 100_000:
        return "gopher_too_many_words"
    # The mean over words. Dolma takes the median, which long URLs do not move.
    if count.word_chars < 3 * count.words:
        return "gopher_short_words"
    if count.word_chars > 10 * count.words:
        return "gopher_long_words"
    # Per token, tokens of punctuation included, as datatrove divides; the paper says "symbol-to-word ratio".
    if text.count("#") / count.tokens > 0.1:
        return "gopher_too_many_hashes"
    if (text.count("...") + text.count("\u2026")) / count.tokens > 0.1:
        return "gopher_too_many_ellipses"
    if reason := _line_reason(_lines(text)):
        return reason
    # The share with an alphabetic character, as the paper has it. datatrove calls this minimum a maximum of non-alpha
    # words; DCLM bounds the complement (0.2). Here a token of punctuation counts in the denominator, as in datatrove.
    if count.alphabetic / count.tokens < 0.8:
        return "gopher_too_few_alphabetic_words"
    # Occurrences, not distinct words, and in lower case only, as in datatrove; DCLM also has count_unique: false. The
    # paper's "at least two of the following" can be read as two different ones.
    if count.stop_words < 2:
        return "gopher_too_few_stop_words"
    return None


def _line_reason(lines: list[str]) -> str | None:
    # The paper says "starting with a bullet point"; datatrove took only U+2022 at first and the hyphen later, NeMo
    # Curator has a longer list of bullets. Without the hyphen no Markdown list would count.
    if sum(line.lstrip().startswith(("\u2022", "-")) for line in lines) / len(lines) > 0.9:
        return "gopher_too_many_bullet_lines"
    if sum(line.rstrip().endswith(("...", "\u2026")) for line in lines) / len(lines) > 0.3:
        return "gopher_too_many_ellipsis_lines"
    return None


def gopher_repetition(text: str) -> str | None:
    """First repetition rule that the text fails, or None (Rae et al. 2021, Table A1). Case and punctuation count."""
    if not text or text.isspace():
        return None
    # Paragraphs end at an empty line. Empty lines are neither lines nor repeats of each other (datatrove keeps an empty
    # one at each end of the text; NeMo Curator bounds the complements, unique lines >= 0.7 and unique chars >= 0.8).
    paragraphs = re.split("\n{2,}", text.strip())
    lines = [line for line in text.split("\n") if line]
    return (
        _duplicate_reason(paragraphs, len(text), "paragraph") or _duplicate_reason(lines, len(text), "line")
        or _ngram_reason(text)
    )


def _duplicate_reason(pieces: list[str], text_chars: int, name: str) -> str | None:
    seen: set[str] = set()
    duplicates = duplicate_chars = 0
    for piece in pieces:
        if piece in seen:
            duplicates += 1
            duplicate_chars += len(piece)
        seen.add(piece)
    if duplicates / len(pieces) > 0.30:
        return f"gopher_duplicate_{name}s"
    # Dolma 1.5 used 0.3 for lines; the paper, datatrove and NeMo Curator have 0.2.
    if duplicate_chars / text_chars > 0.20:
        return f"gopher_duplicate_{name}_chars"
    return None


def _ngram_reason(text: str) -> str | None:
    # Two departures from datatrove: the most frequent n-gram must occur twice (a text of three words is not repetitive
    # because its only 3-gram is all of it), and repeats are compared word by word, not as joined letters. Shared with
    # it: a repeat inside a skipped stretch is not entered, and repeated n-grams count letters without the blanks.
    top, repeated = ngram_chars(token_counts(text))
    for (n, share), chars in zip(TOP_NGRAM_SHARES, top, strict=True):
        if chars / len(text) > share:
            return f"gopher_top_{n}gram_chars"
    for (n, share), chars in zip(REPEATED_NGRAM_SHARES, repeated, strict=True):
        if chars / len(text) > share:
            return f"gopher_repeated_{n}gram_chars"
    return None


def ngram_chars(count: TokenCounts) -> tuple[np.ndarray, np.ndarray]:
    """(characters of the top n-gram for n = 2 to 4 [3], characters in repeated n-grams for n = 5 to 10 [6]), int64."""
    top, repeated = np.zeros(len(TOP_NGRAM_SHARES), np.int64), np.zeros(len(REPEATED_NGRAM_SHARES), np.int64)
    size = 1 << (2 * count.tokens + 1).bit_length()
    _repetition(count.hashes, count.chars, top, repeated, np.empty(size, np.uint64), np.empty(size, np.int32),
                np.empty(count.tokens, np.int32), np.empty(count.tokens, np.int32))
    return top, repeated
