"""Words as decontamination compares them: without case, accents, punctuation and layout, hashed over UTF-8 bytes.

**Folding**: every character becomes the letters and digits of its compatibility decomposition (NFKD), case-folded,
without accents: full-width and mathematical letters become plain ones, e with an acute accent becomes e however it is
composed, a ligature becomes its letters. Marks that spell a vowel (Devanagari and its relatives) stay.

**Word**: a maximal run of folded letters and digits. Apostrophes, joiners, soft hyphens and accents by themselves are
passed over ("don't" is "dont"), every other character separates. A character of the scripts that are written without
spaces is a word by itself. The Unicode data is this Python's, whose version is part of a run's fingerprint.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import NamedTuple

import numpy as np

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.characters import decode
from pretrainer.data.hashing import FNV_OFFSET, FNV_PRIME, mix64

SEPARATOR, IGNORED, LETTER, SINGLE = 0, 1, 2, 3
_APOSTROPHES = "'\u02bc\u2018\u2019\uff07"
_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "MYANMAR", "KHMER")
_TABLE_SIZE = 0x20000
"""Planes 0 and 1. Planes 2 and 3 are ideographs, the rest is tags and private use, which separates."""
_KEPT_MARKS = (0, 7, 9)
"""Combining classes of marks that are part of the spelling: vowel signs, nukta, virama."""


class Folding(NamedTuple):
    """What becomes of each character; the folded bytes of code point c are data[offsets[c]:offsets[c + 1]]."""

    ascii: np.ndarray  # [128] uint8: SEPARATOR or IGNORED, else the folded byte
    kinds: np.ndarray  # [0x20000] uint8
    offsets: np.ndarray  # [0x20001] int32
    data: np.ndarray  # uint8


def fold_character(character: str) -> str:
    """Folded letters and digits of a character, "" if it has none."""
    decomposed = unicodedata.normalize("NFKD", character).casefold()
    return "".join(c for c in decomposed if c.isalnum() or _is_spelling_mark(c))


def _is_spelling_mark(character: str) -> bool:
    is_mark = unicodedata.category(character) in ("Mn", "Mc") and unicodedata.combining(character) in _KEPT_MARKS
    return is_mark and not unicodedata.name(character, "").startswith(("VARIATION", "COMBINING", "MONGOLIAN FREE"))


def character_kind(character: str, folded: str) -> int:
    """SEPARATOR, IGNORED, LETTER or SINGLE."""
    if folded:
        return SINGLE if unicodedata.name(folded[0], "").startswith(_WITHOUT_SPACES) else LETTER
    passed_over = character in _APOSTROPHES or unicodedata.category(character) in ("Mn", "Me", "Cf")
    return IGNORED if passed_over else SEPARATOR


@functools.cache
def folding() -> Folding:
    """The tables of this Python's Unicode data; made once in a process, in about 0.3 s."""
    folded = [fold_character(chr(code_point)) for code_point in range(_TABLE_SIZE)]
    kinds = np.array([character_kind(chr(c), text) for c, text in enumerate(folded)], np.uint8)
    pieces = [text.encode() for text in folded]
    offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])]).astype(np.int32)
    ascii_bytes = np.array([pieces[c][0] if pieces[c] else kinds[c] for c in range(128)], np.uint8)
    return Folding(ascii_bytes, kinds, offsets, np.frombuffer(b"".join(pieces), np.uint8))


@kernel()
def _wide_character(text: np.ndarray, i: int, f: Folding, word: np.uint64) -> tuple[int, int, np.uint64]:
    """(bytes, kind, hash of the word that goes on with it) of the character that begins at text[i], no ASCII."""
    code_point, size = decode(text, i)
    if code_point < _TABLE_SIZE:
        for j in range(f.offsets[code_point], f.offsets[code_point + 1]):
            word = (word ^ np.uint64(f.data[j])) * FNV_PRIME
        return size, int(f.kinds[code_point]), word
    for j in range(i, i + size):
        word = (word ^ np.uint64(text[j])) * FNV_PRIME
    return size, SINGLE if code_point < 0x40000 else SEPARATOR, word


@kernel()
def read_words(
    text: np.ndarray, i: int, f: Folding, words: np.ndarray, starts: np.ndarray, count: int
) -> tuple[int, int]:
    """Write hash and first byte of the words from byte i on behind the `count` that are there, until `words` is full.

    Returns (number of words, byte behind the last one read); starts[number of words] is that byte, so `starts` is one
    longer than `words`.
    """
    word, in_word = FNV_OFFSET, False
    while i < text.size and count < words.size:
        byte = text[i]
        if byte < 0x80:  # decided here: a call per byte made the kernel several times slower
            folded = f.ascii[byte]
            if folded > IGNORED:
                if not in_word:
                    starts[count], word, in_word = i, FNV_OFFSET, True
                word = (word ^ np.uint64(folded)) * FNV_PRIME
            elif in_word and folded == SEPARATOR:
                words[count], in_word = mix64(word), False
                count += 1
            i += 1
            continue
        size, kind, longer = _wide_character(text, i, f, word if in_word else FNV_OFFSET)
        if kind == LETTER:
            starts[count] = starts[count] if in_word else i
            word, in_word = longer, True
        elif kind != IGNORED and in_word:  # the character is read again, with room for a word of its own
            words[count], in_word = mix64(word), False
            count += 1
            continue
        elif kind == SINGLE:
            starts[count], words[count] = i, mix64(longer)
            count += 1
        i += size
    if in_word:
        words[count] = mix64(word)
        count += 1
    starts[count] = i
    return count, i
