"""What exact dedup compares, for a whole column at a time.

`exact_hashes` gives what `filters.normalise.exact_hashes` gives (128-bit XXH3 of the NFC form with runs of whitespace
as one blank), without a Python string per document: one pass writes the collapsed bytes, and only a document with a
character that NFC may change goes the slow way.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import pyarrow as pa
import xxhash

from pretrainer.data.compiled import kernel
from pretrainer.data.filters.normalise import as_large_string, exact_hash, utf8_buffers

_PLAIN, _SPACE, _UNSURE = 0, 1, 2


@functools.cache
def _kinds() -> np.ndarray:
    """[65536] uint8: white space, a character that NFC never changes in any context, or one that it may."""
    kinds = np.full(0x10000, _PLAIN, np.uint8)
    for code in range(0x80, 0x10000):
        character = chr(code)
        if unicodedata.combining(character) or (not 0xD800 <= code < 0xE000 and _changes(character)):
            kinds[code] = _UNSURE
        parts = unicodedata.decomposition(character).split()
        if len(parts) == 2 and not parts[0].startswith("<") and len(parts[1]) == 4:
            kinds[int(parts[1], 16)] = _UNSURE  # may compose with the character before it
    kinds[0x1100:0x1200] = _UNSURE  # conjoining jamo compose by arithmetic
    for code in range(0x10000):
        if chr(code).isspace() and kinds[code] == _PLAIN or code in (0x2000, 0x2001):
            kinds[code] = _SPACE
    return kinds


def _changes(character: str) -> bool:
    return unicodedata.normalize("NFC", character) != character


@kernel()
def _collapse(
    data: np.ndarray, offsets: np.ndarray, kinds: np.ndarray, out: np.ndarray, ends: np.ndarray, unsure: np.ndarray
) -> None:
    """Write texts with runs of whitespace as one blank, none at the ends; text i ends at ends[i] in out."""
    n = 0
    for d in range(offsets.size - 1):
        first, i, end, blank = n, offsets[d], offsets[d + 1], True
        while i < end:
            while i < end and data[i] < 0x80:  # without a branch per byte: where words end cannot be predicted
                space = kinds[data[i]] == _SPACE
                out[n] = 0x20 if space else data[i]
                n += not (space and blank)
                blank = space
                i += 1
            if i == end:
                break
            lead = np.int64(data[i])
            if lead < 0xE0:
                size, kind = 2, kinds[(lead & 0x1F) << 6 | np.int64(data[i + 1] & 0x3F)]
            elif lead < 0xF0:
                size = 3
                kind = kinds[(lead & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | np.int64(data[i + 2] & 0x3F)]
            else:  # U+1F000 to U+1FFFF, emoji, have no canonical forms; the rest is rare
                size, kind = 4, np.uint8(_PLAIN if lead == 0xF0 and data[i + 1] == 0x9F else _UNSURE)
            if kind == _UNSURE:
                unsure[d] = True
                break
            if kind != _SPACE:
                for j in range(i, i + size):
                    out[n] = data[j]
                    n += 1
            elif not blank:
                out[n] = 0x20
                n += 1
            blank = kind == _SPACE
            i += size
        if blank and n > first:
            n -= 1
        ends[d] = n


def exact_hashes(texts: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """128-bit XXH3 of the dedup key of N texts: [N, 2] uint64, columns (high, low)."""
    array = as_large_string(texts)
    data, offsets = utf8_buffers(array)
    out = np.empty(int(offsets[-1] - offsets[0]) + 1, np.uint8)
    ends, unsure = np.zeros(len(array), np.int64), np.zeros(len(array), bool)
    _collapse(data, offsets, _kinds(), out, ends, unsure)
    view, starts = memoryview(out.data), [0, *ends.tolist()]
    digests = b"".join(
        [
            exact_hash(array[i].as_py()) if slow else xxhash.xxh3_128_digest(view[starts[i] : starts[i + 1]])
            for i, slow in enumerate(unsure.tolist())
        ]
    )
    return np.frombuffer(digests, ">u8").reshape(-1, 2).astype(np.uint64)


def url_hashes(urls: pa.Array) -> np.ndarray:
    """128-bit XXH3 of N canonical URLs, 0 for an empty one: [N, 2] uint64."""
    digests = [xxhash.xxh3_128_digest(url.encode()) if url else b"\0" * 16 for url in urls.to_pylist()]
    return np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).astype(np.uint64)
