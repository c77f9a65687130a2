"""Which share of a document's words stands in word lists: one pass of an Aho-Corasick automaton over a whole column.

A word is a run of letters, digits, combining marks and "_", in lower case; what stands between two words does not
matter, so a phrase is found across punctuation and line ends. In scripts that write no blanks (Han, kana, Thai, Lao,
Khmer, Burmese) every character is a word, as C4 also looks for words there without borders.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.characters import ALPHANUMERIC, character_table, decode
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.data.filters.phrases import phrase_automaton
from pretrainer.errors import UserError

ALONE = 1 << 24
"""Flag of a character that is a word by itself; the code point stands below it."""
MAX_WORDS = 62
_UNSPACED = ((0x0E01, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3005, 0x30FF), (0x31F0, 0x31FF),
             (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x3FFFF))  # fmt: skip
_CASED = 0x20000  # no letter above has a case


@functools.cache
def letter_table(marks: bool) -> np.ndarray:
    """[0x110000] int32: the lower-case code point of a character of words, 0 for any other; with `marks` combining
    marks belong to words and ALONE is set.

    One character for one: U+0130 is "i", and a capital sigma never becomes the final form.
    """
    table = np.arange(0x110000, dtype=np.int32)
    table[:_CASED] = np.strings.lower(np.arange(_CASED, dtype=np.uint32).view("U1")).view(np.int32)
    inside = (character_table() & ALPHANUMERIC) != 0
    inside[ord("_")] = True
    if marks:
        inside[[i for i in range(_CASED) if unicodedata.category(chr(i))[0] == "M"]] = True
        for first, last in _UNSPACED:
            table[first : last + 1] |= ALONE
    table[~inside] = 0
    return table


class WordList(NamedTuple):
    """Phrases as an automaton over words that stand between blanks."""

    columns: np.ndarray  # these four: a PhraseAutomaton
    moves: np.ndarray
    phrase: np.ndarray
    shorter: np.ndarray
    words: np.ndarray  # [P] int64: words of each phrase


def word_list(phrases: Iterable[str]) -> WordList:
    """UserError for a phrase without a letter or of more than MAX_WORDS words."""
    split = [_words(phrase) for phrase in dict.fromkeys(phrases)]
    counts = np.array([len(words) for words in split], np.int64)
    return WordList(*phrase_automaton(f" {' '.join(words)} " for words in split), counts)


def _words(phrase: str) -> list[str]:
    letters = letter_table(True)[[ord(character) for character in phrase]] if phrase else np.zeros(0, np.int32)
    spaced = "".join(f" {chr(n ^ ALONE)} " if n & ALONE else chr(n) if n else " " for n in letters.tolist())
    words = spaced.split(" ")
    words = [word for word in words if word]
    if not 1 <= len(words) <= MAX_WORDS:
        raise UserError(f"word list: {phrase!r} has {len(words)} words: give 1 to {MAX_WORDS}, one phrase per line")
    return words


def listed_share(texts: pa.Array, chosen: np.ndarray, listed: WordList) -> np.ndarray:
    """Words that lie in a listed phrase / words, [N] float64; 0 without words. chosen [N] bool: others get 0."""
    data, offsets = utf8_buffers(texts)
    counts = np.zeros((len(offsets) - 1, 2), np.int64)
    _count(data, offsets, letter_table(True), *listed, chosen, counts)
    return counts[:, 1] / np.maximum(counts[:, 0], 1)


# ---------------------------------------------------------------------------------------------------------- kernels


@kernel()
def _feed(state: int, code_point: int, columns: np.ndarray, moves: np.ndarray) -> int:
    """The state behind the UTF-8 bytes of a character."""
    if code_point < 0x80:
        return moves[state, columns[code_point]]
    size = 2 if code_point < 0x800 else 3 if code_point < 0x10000 else 4
    lead = 0xC0 if size == 2 else 0xE0 if size == 3 else 0xF0
    state = moves[state, columns[lead | code_point >> 6 * (size - 1)]]
    for part in range(size - 2, -1, -1):
        state = moves[state, columns[0x80 | code_point >> 6 * part & 0x3F]]
    return state


@kernel()
def _newly_covered(state: int, spelt: np.ndarray, shorter: np.ndarray, words: np.ndarray, covered: int) -> int:
    """Bits of the last words that the phrases ending here cover: `covered` and theirs, bit 0 the last word."""
    ended = state if spelt[state] >= 0 else shorter[state]
    while ended:
        covered |= (np.int64(1) << words[spelt[ended]]) - 1
        ended = shorter[ended]
    return covered


@kernel()
def _ones(bits: int) -> int:
    count = 0
    while bits:
        bits &= bits - 1
        count += 1
    return count


@kernel()
def _count(
    data: np.ndarray, offsets: np.ndarray, table: np.ndarray, columns: np.ndarray, moves: np.ndarray, spelt: np.ndarray,
    shorter: np.ndarray, words: np.ndarray, chosen: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """out [N, 2]: words, and of them listed ones."""
    keep = (np.int64(1) << 62) - 1
    for document in range(offsets.size - 1):
        if not chosen[document]:
            continue
        i, end = offsets[document], offsets[document + 1]
        open_word, alone = False, False  # inside a word; it is a character that is one by itself
        state, covered = moves[0, columns[0x20]], np.int64(0)
        while i <= end:
            code_point, size = decode(data, i) if i < end else (np.int64(0), 1)
            letter = np.int64(table[code_point])
            if open_word and (letter == 0 or letter >= ALONE or alone):
                open_word = False
                out[document, 0] += 1
                covered = covered << 1 & keep
                state = moves[state, columns[0x20]]
                now = _newly_covered(state, spelt, shorter, words, covered)
                out[document, 1] += _ones(now ^ covered)
                covered = now
            if letter:
                state = _feed(state, letter & (ALONE - 1), columns, moves)
                open_word, alone = True, bool(letter >= ALONE)
            i += size
