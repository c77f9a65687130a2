"""Byte ranges that leave a text: merged, measured, cut out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pretrainer.data.compiled import kernel
from pretrainer.data.dedup.ragged import Ragged
from pretrainer.data.filters.normalise import from_utf8_buffers, utf8_buffers


def merge_ranges(ranges: np.ndarray) -> np.ndarray:
    """The union of half-open ranges [n, 2] as ascending ranges [m, 2] that do not touch."""
    ranges = ranges[np.lexsort((ranges[:, 1], ranges[:, 0]))]
    if len(ranges) < 2:
        return ranges
    furthest = np.maximum.accumulate(ranges[:, 1])
    begins = np.concatenate([[True], ranges[1:, 0] > furthest[:-1]])
    ends = np.concatenate([begins[1:], [True]])
    return np.stack([ranges[begins, 0], furthest[ends]], axis=1)


@kernel()
def _cut(
    data: np.ndarray, offsets: np.ndarray, ranges: np.ndarray, range_offsets: np.ndarray,
    out: np.ndarray, ends: np.ndarray,
) -> None:
    n = 0
    for d in range(offsets.size - 1):
        i = offsets[d]
        for r in range(range_offsets[d], range_offsets[d + 1], 2):
            while i < offsets[d] + ranges[r]:
                out[n] = data[i]
                n, i = n + 1, i + 1
            i = offsets[d] + ranges[r + 1]
        while i < offsets[d + 1]:
            out[n] = data[i]
            n, i = n + 1, i + 1
        ends[d + 1] = n


def remove_ranges(texts: pa.Array | pa.ChunkedArray, removed: Ragged) -> pa.LargeStringArray:
    """N texts without the byte ranges of `removed` (first, end, first, end … of each, ascending, disjoint)."""
    data, offsets = utf8_buffers(texts)
    out, ends = np.empty(int(offsets[-1] - offsets[0]), np.uint8), np.zeros(offsets.size, np.int64)
    _cut(data, offsets, np.ascontiguousarray(removed.values, np.int64), removed.offsets, out, ends)
    return from_utf8_buffers(out, ends)
