"""One pass over the bytes of a whole column that finds where personal data or a secret could be: the triggers.

A trigger is cheap and may be wrong; a pattern of `pii_patterns` or `pii_secrets` decides about each. Text in which
nothing looks like a find costs this pass alone, and no text is gone through by a pattern as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.normalise import utf8_buffers
from pretrainer.data.filters.phrases import phrase_automaton

AT, URL_AT, PLUS, PHONE, SSN, IPV4, IPV6, CARD, IBAN = range(9)
"""Triggers by shape: an @ in an address or in a URL with a password, a + before digits, and numbers by their groups."""
FIRST_PHRASE = 16
"""Triggers from here on are phrases: FIRST_PHRASE + their place in the list."""
ANYWHERE, VALUE, DIGITS = 0, 1, 2
"""What must follow a phrase: anything; within 32 bytes : = or , and a word of 8 bytes; within 16 bytes a digit."""

_WORD, _DIGIT, _UPPER, _MARK, _HEX = 1, 2, 4, 8, 16
_CLASSES = np.zeros(256, np.uint8)
for _characters, _bits in (
    ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", _WORD | _UPPER),
    ("abcdefghijklmnopqrstuvwxyz_", _WORD),
    ("0123456789", _WORD | _DIGIT | _HEX),
    ("@+(", _MARK),
):
    _CLASSES[[ord(character) for character in _characters]] = _bits
_CLASSES[[ord(character) for character in "abcdefABCDEF"]] |= _HEX


class Phrase(NamedTuple):
    """A phrase that may stand before a find or begin it, in ASCII lower case (found in either case)."""

    text: str
    follow: int
    border: bool  # no word character and no hyphen before it


class Scanner(NamedTuple):
    """The tables of a pass: which triggers by shape are wanted, and the phrases."""

    wanted: np.ndarray  # [FIRST_PHRASE] bool
    phrases: np.ndarray  # [P, 3] int64: bytes, follow, border
    columns: np.ndarray  # [256] uint8; this and the next three are a PhraseAutomaton
    moves: np.ndarray
    phrase: np.ndarray
    shorter: np.ndarray


def scanner(shapes: Sequence[int], phrases: Sequence[Phrase]) -> Scanner:
    wanted = np.zeros(FIRST_PHRASE, bool)
    wanted[list(shapes)] = True
    rows = [(len(phrase.text.encode()), phrase.follow, phrase.border) for phrase in phrases]
    return Scanner(
        wanted, np.array(rows, np.int64).reshape(-1, 3), *phrase_automaton(phrase.text for phrase in phrases)
    )


def find_triggers(texts: pa.Array, tables: Scanner) -> np.ndarray:
    """[T, 3] int64 of (document, byte in it, trigger), in order. A phrase's byte is the one behind it."""
    data, offsets = utf8_buffers(texts)
    out = np.empty((1024 + (offsets[-1] - offsets[0]) // 256, 3), np.int64)
    count = _scan(data, offsets, _CLASSES, *tables, out)
    if count > len(out):
        out = np.empty((count, 3), np.int64)
        _scan(data, offsets, _CLASSES, *tables, out)
    return out[:count]


# ---------------------------------------------------------------------------------------------------------- kernels


@kernel()
def _digits_at(text: np.ndarray, i: int) -> int:
    """Length of the run of digits at byte i, counted to 20."""
    size = 0
    while i + size < text.size and size < 20 and 0x30 <= text[i + size] <= 0x39:
        size += 1
    return size


@kernel()
def _is_one_of(text: np.ndarray, i: int, a: int, b: int, c: int) -> bool:
    return i < text.size and (text[i] == a or text[i] == b or text[i] == c)


@kernel()
def _is_grouped(text: np.ndarray, i: int, first: int, second: int, third: int) -> bool:
    """Digits in three groups of these lengths with one blank, hyphen or full stop between two."""
    for size in (first, second):
        if _digits_at(text, i) != size or not _is_one_of(text, i + size, 0x20, 0x2D, 0x2E):
            return False
        i += size + 1
    return _digits_at(text, i) == third


@kernel()
def _is_ipv4(text: np.ndarray, i: int) -> bool:
    for _ in range(3):
        size = _digits_at(text, i)
        if not 1 <= size <= 3 or not _is_one_of(text, i + size, 0x2E, 0x2E, 0x2E):
            return False
        i += size + 1
    return 1 <= _digits_at(text, i) <= 3


@kernel()
def _is_ipv6(text: np.ndarray, i: int, classes: np.ndarray) -> bool:
    """Begins like an address of 2000::/3: four hexadecimal digits and a colon."""
    if i + 4 >= text.size or not _is_one_of(text, i, 0x32, 0x33, 0x33) or text[i + 4] != 0x3A:
        return False
    return bool(classes[text[i + 1]] & classes[text[i + 2]] & classes[text[i + 3]] & _HEX)


@kernel()
def _grouped_digits(text: np.ndarray, i: int) -> int:
    """Digits from byte i on with at most one blank or hyphen between two, counted to 20."""
    digits = 0
    while i < text.size and digits < 20:
        if 0x30 <= text[i] <= 0x39:
            digits += 1
        elif not (_is_one_of(text, i, 0x20, 0x2D, 0x2D) and 0x30 <= text[i - 1] <= 0x39):
            break
        i += 1
    return digits


@kernel()
def _number_shapes(text: np.ndarray, i: int, classes: np.ndarray) -> int:
    """Bits of the triggers whose shape a number beginning at byte i has."""
    bits, size = 0, _digits_at(text, i)
    if size <= 3:
        bits |= _is_ipv4(text, i) << IPV4
    if size == 3:
        bits |= _is_grouped(text, i, 3, 3, 4) << PHONE
        bits |= _is_grouped(text, i, 3, 2, 4) << SSN
    if size == 1 and text[i] == 0x31 and i + 2 < text.size:
        second = i + 2
        bits |= (_is_grouped(text, second, 3, 3, 4) or _is_area_code(text, second)) << PHONE
    if 0x32 <= text[i] <= 0x36 and size >= 4:
        bits |= (13 < _grouped_digits(text, i) < 20) << CARD
    return bits | _is_ipv6(text, i, classes) << IPV6


@kernel()
def _is_area_code(text: np.ndarray, i: int) -> bool:
    """(NNN) before a digit, blank or hyphen."""
    closed = i + 5 < text.size and text[i] == 0x28 and _digits_at(text, i + 1) == 3 and text[i + 4] == 0x29
    return closed and (_digits_at(text, i + 5) > 0 or _is_one_of(text, i + 5, 0x20, 0x2D, 0x2E))


@kernel()
def _begins_iban(text: np.ndarray, i: int, classes: np.ndarray) -> bool:
    if i + 5 >= text.size or not classes[text[i + 1]] & _UPPER:
        return False
    return bool(classes[text[i + 2]] & classes[text[i + 3]] & _DIGIT) and (
        classes[text[i + 4]] & _WORD or _is_one_of(text, i + 4, 0x20, 0x2D, 0x2D)
    )


@kernel()
def _is_address(text: np.ndarray, i: int, classes: np.ndarray) -> bool:
    """The @ at byte i has a local part and a domain with a full stop in it."""
    if i == 0 or text[i - 1] <= 0x20 or text[i - 1] == 0x2E:
        return False
    j, dots = i + 1, 0
    while j < text.size and j < i + 255 and (classes[text[j]] & _WORD or text[j] >= 0x80 or 0x2D <= text[j] <= 0x2E):
        dots += text[j] == 0x2E and j > i + 1
        j += 1
    return dots > 0


@kernel()
def _has_password(text: np.ndarray, i: int) -> bool:
    """Before the @ at byte i stands //user:password, within 256 bytes."""
    j, colon = i - 1, False
    while j > 0 and j > i - 256 and text[j] > 0x20 and text[j] != 0x2F and text[j] != 0x40:
        colon |= text[j] == 0x3A
        j -= 1
    return colon and j > 0 and text[j] == 0x2F and text[j - 1] == 0x2F


@kernel()
def _has_phone_digits(text: np.ndarray, i: int) -> bool:
    """Seven digits from byte i on, between them at most two of blank, ( ) - . and /."""
    digits, others = 0, 0
    while i < text.size and digits < 7 and others < 3:
        is_digit = 0x30 <= text[i] <= 0x39
        if not (is_digit or text[i] == 0x20 or 0x28 <= text[i] <= 0x29 or 0x2D <= text[i] <= 0x2F):
            return False
        digits, others = digits + is_digit, 0 if is_digit else others + 1
        i += 1
    return digits == 7


@kernel()
def _is_solid(text: np.ndarray, i: int) -> bool:
    """Behind blanks, > and a quote at byte i on come eight bytes without blanks, brackets and quotes."""
    first = i
    while first < text.size and first < i + 8 and (_is_one_of(text, first, 0x20, 0x3E, 0x3D) or _is_quote(text[first])):
        first += 1
    for j in range(first, first + 8):
        if j >= text.size or text[j] <= 0x20 or _is_quote(text[j]) or 0x28 <= text[j] <= 0x29:
            return False
    return True


@kernel()
def _is_quote(byte: np.uint8) -> bool:
    return byte == 0x22 or byte == 0x27 or byte == 0x60


@kernel()
def _mark_shapes(text: np.ndarray, i: int, classes: np.ndarray) -> int:
    """Bits of the triggers that an @, + or ( at byte i is."""
    if text[i] == 0x40:
        return _is_address(text, i, classes) << AT | _has_password(text, i) << URL_AT
    if text[i] == 0x2B:
        return _has_phone_digits(text, i + 1) << PLUS
    return _is_area_code(text, i) << PHONE


@kernel()
def _is_bordered(text: np.ndarray, i: int, phrase: np.ndarray, classes: np.ndarray) -> bool:
    """The phrase that ends with byte i needs no border, or no word character and no hyphen stands before it."""
    before = i - phrase[0]
    return not (phrase[2] and before >= 0 and (classes[text[before]] & _WORD or text[before] == 0x2D))


@kernel()
def _follows(text: np.ndarray, i: int, follow: int, classes: np.ndarray) -> bool:
    """What `follow` asks for stands in the same line behind byte i - 1."""
    if follow == ANYWHERE:
        return True
    reach = 32 if follow == VALUE else 16
    for j in range(i, min(text.size, i + reach)):
        if text[j] == 0x0A:
            return False
        if follow == DIGITS and classes[text[j]] & _DIGIT:
            return True
        if follow == VALUE and _is_one_of(text, j, 0x3A, 0x3D, 0x2C) and _is_solid(text, j + 1):
            return True
    return False


@kernel()
def _scan(
    data: np.ndarray, offsets: np.ndarray, classes: np.ndarray, wanted: np.ndarray, phrases: np.ndarray,
    columns: np.ndarray, moves: np.ndarray, spelt: np.ndarray, shorter: np.ndarray, out: np.ndarray,
) -> int:  # fmt: skip
    """Write triggers while there is room; returns how many there are."""
    count = 0
    for document in range(offsets.size - 1):
        text = data[offsets[document] : offsets[document + 1]]
        state, before = 0, 0
        for i in range(text.size):
            own = classes[text[i]]
            bits = 0
            if own & _MARK:
                bits = _mark_shapes(text, i, classes)
            elif own & (_DIGIT | _UPPER) and not before & _WORD:
                if own & _DIGIT:
                    bits = _number_shapes(text, i, classes)
                else:
                    bits = _begins_iban(text, i, classes) << IBAN
            before = own
            for trigger in range(FIRST_PHRASE if bits else 0):
                if bits >> trigger & 1 and wanted[trigger]:
                    if count < len(out):
                        out[count, 0], out[count, 1], out[count, 2] = document, i, trigger
                    count += 1
            state = moves[state, columns[text[i]]]
            ended = state if spelt[state] >= 0 else shorter[state]
            while ended:
                phrase = spelt[ended]
                ended = shorter[ended]
                follow = phrases[phrase, 1]
                if _is_bordered(text, i, phrases[phrase], classes) and _follows(text, i + 1, follow, classes):
                    if count < len(out):
                        out[count, 0], out[count, 1], out[count, 2] = document, i + 1, FIRST_PHRASE + phrase
                    count += 1
    return count
