"""What a character is, for the filters' kernels: one byte of flags per code point, by this Python's Unicode data.

The Unicode version is part of the run's fingerprint, because it decides what is kept.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.normalise import utf8_buffers

SPACE, PUNCTUATION, ALPHABETIC, OTHER = 0, 1, 2, 3
KIND = 3
"""Mask of the kind; the flags stand above it."""
UPPER, DIGIT, SENTENCE_END, ALPHANUMERIC = 4, 8, 16, 32

# The five of C4 and FineWeb (. ? ! " '), and common marks that end a sentence in other scripts (our choice).
_SENTENCE_ENDS = (
    ".?!\"'\u2026\u203c\u203d\u2047\u2048\u2049\u3002\ufe52\uff0e\uff61\uff01\uff1f\u061f\u06d4\u0964\u0965\u0589\u055c\u055e\u104a"
    "\u104b\u1362\u1367\u1368\u17d4\u17d5\u1803\u1809\u0f0d\u0f0e\ua4ff\u0700\u0701\u0702\u0df4\u00bb\u201d\u2019\u300d\u300f"
)


@functools.cache
def character_table() -> np.ndarray:
    """[0x110000] uint8: kind (KIND) and flags of each code point."""
    characters = np.arange(0x110000, dtype=np.uint32).view("U1")
    table = np.full(0x110000, OTHER, np.uint8)
    # Above plane 1 there are ideographs, tags and private use: no punctuation and no symbols.
    low = [unicodedata.category(chr(code_point))[0] for code_point in range(0x20000)]
    table[np.flatnonzero(np.isin(low, ["P", "S"]))] = PUNCTUATION
    table[np.strings.isalpha(characters)] = ALPHABETIC
    table[np.strings.isspace(characters)] = SPACE
    table[np.strings.isupper(characters)] |= UPPER
    table[np.strings.isdigit(characters)] |= DIGIT
    table[np.strings.isalnum(characters)] |= ALPHANUMERIC
    table[[ord(character) for character in _SENTENCE_ENDS]] |= SENTENCE_END
    return table


@kernel()
def decode(data: np.ndarray, i: int) -> tuple[np.int64, int]:
    """(code point, bytes) of the character whose first byte is data[i]."""
    lead = np.int64(data[i])
    if lead < 0x80:
        return lead, 1
    second = np.int64(data[i + 1] & 0x3F)
    if lead < 0xE0:
        return (lead & 0x1F) << 6 | second, 2
    third = np.int64(data[i + 2] & 0x3F)
    if lead < 0xF0:
        return (lead & 0x0F) << 12 | second << 6 | third, 3
    return (lead & 0x07) << 18 | second << 12 | third << 6 | np.int64(data[i + 3] & 0x3F), 4


def visible_chars(texts: pa.Array) -> dict[str, np.ndarray]:
    """Characters that are no whitespace, [N]."""
    data, offsets = utf8_buffers(texts)
    counts = np.zeros(len(offsets) - 1, np.float64)
    _visible(data, offsets, character_table(), counts)
    return {"visible_chars": counts}


@kernel()
def _visible(data: np.ndarray, offsets: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    for document in range(offsets.size - 1):
        i = offsets[document]
        while i < offsets[document + 1]:
            code_point, size = decode(data, i)
            out[document] += table[code_point] & KIND != SPACE
            i += size
