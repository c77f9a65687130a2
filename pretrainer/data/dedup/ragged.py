"""Rows of different length in one array: sketches, hashes of lines and words, removed ranges of N documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Ragged:
    """Row i is values[offsets[i]:offsets[i + 1]]."""

    values: np.ndarray  # [all rows together]
    offsets: np.ndarray  # [N + 1] int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    @classmethod
    def of(cls, rows: Sequence[np.ndarray], dtype: type) -> Ragged:
        """The rows one behind the other."""
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, dtype), *rows]).astype(dtype), offsets)

    def select(self, which: np.ndarray | slice) -> Ragged:
        """Rows of a mask [N] bool, of indices [M] in that order, or of a slice."""
        rows = np.arange(len(self))[which]
        lengths = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        take = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Ragged(self.values[take], offsets)

    def to_array(self) -> pa.Array:
        """A large_list of the values' type."""
        return pa.LargeListArray.from_arrays(pa.array(self.offsets, pa.int64()), pa.array(self.values))

    @classmethod
    def from_column(cls, column: pa.ChunkedArray) -> Ragged:
        """Inverse of `to_array`; a null is an empty row."""
        array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        lengths = np.asarray(array.value_lengths().fill_null(0), np.int64)
        return cls(np.asarray(array.flatten()), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
