"""Places in the order of a source as one number: held-out documents, then sealed ones, then those of the stream."""

from __future__ import annotations

from pretrainer.errors import StreamError

_UNIT_BITS, _CHUNK_BITS, _DOC_BITS = 28, 15, 20
_HELD_OUT, _SEALED, _SEALED_BITS = -(1 << 62), -(1 << 61), 48


def position(unit: int, chunk: int, doc: int) -> int:
    """Place of a document in its source's order: unit << 35 | chunk << 20 | doc; raises StreamError if out of range."""
    for name, value, bits in (("unit", unit, _UNIT_BITS), ("chunk", chunk, _CHUNK_BITS), ("doc", doc, _DOC_BITS)):
        if not 0 <= value < 1 << bits:
            raise StreamError(f"{name}={value} does not fit into {bits} bits of a document's position")
    return unit << (_CHUNK_BITS + _DOC_BITS) | chunk << _DOC_BITS | doc


def split_position(position: int) -> tuple[int, int, int]:
    """(unit, chunk, doc): inverse of `position`."""
    unit, rest = divmod(position, 1 << (_CHUNK_BITS + _DOC_BITS))
    return unit, *divmod(rest, 1 << _DOC_BITS)


def held_out_position(index: int) -> int:
    """Negative place of the index-th held-out document; ascending with the index, before all other documents."""
    if not 0 <= index < 1 << 61:
        raise StreamError(f"index={index} of a held-out document is out of range")
    return _HELD_OUT + index


def held_out_index(position: int) -> int:
    """Inverse of `held_out_position`."""
    return position - _HELD_OUT


def sealed_position(number: int, index: int) -> int:
    """Negative place of the index-th kept document of the number-th sealed index, behind all held-out documents."""
    if not (0 <= number < 1 << 12 and 0 <= index < 1 << _SEALED_BITS):
        raise StreamError(f"document {index} of sealed index {number} is out of range")
    return _SEALED + (number << _SEALED_BITS) + index


def is_sealed(position: int) -> bool:
    return _SEALED <= position < 0


def split_sealed(position: int) -> tuple[int, int]:
    """(number, index): inverse of `sealed_position`."""
    return divmod(position - _SEALED, 1 << _SEALED_BITS)
