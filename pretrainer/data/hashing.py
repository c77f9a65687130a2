"""64-bit hashing inside compiled kernels: the same numbers on every platform and in every process.

FNV-1a (Fowler, Noll, Vo) over bytes is sequential but needs one multiplication per byte and no buffer; its weak low
bits are mended by the MurmurHash3 finalizer `mix64`. These are not for adversaries, and nothing durable but MinHash
signatures depends on them (their scheme id names them as "words1").
"""

from __future__ import annotations

import numpy as np

from pretrainer.data.compiled import kernel

FNV_OFFSET, FNV_PRIME = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
POLYNOMIAL_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Odd base of polynomials modulo 2^64 over consecutive words: 2^64 divided by the golden ratio."""

_SHIFT = np.uint64(33)
_MULTIPLIER_1, _MULTIPLIER_2 = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)


@kernel()
def mix64(h: np.uint64) -> np.uint64:
    """Finalizer of MurmurHash3 (Appleby): a bijection in which every input bit moves every output bit."""
    h = (h ^ (h >> _SHIFT)) * _MULTIPLIER_1
    h = (h ^ (h >> _SHIFT)) * _MULTIPLIER_2
    return h ^ (h >> _SHIFT)


@kernel()
def hash_bytes(data: np.ndarray) -> np.uint64:
    """FNV-1a of bytes [n] uint8, finalized."""
    h = FNV_OFFSET
    for byte in data:
        h = (h ^ np.uint64(byte)) * FNV_PRIME
    return mix64(h)
