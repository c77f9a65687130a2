"""Documents to rows: pure numpy, no Ray, no storage.

A document becomes bos + tokens + eos. A row has seq_len + 1 token ids; its last id is only ever a target.
Shapes: R rows, L = seq_len + 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pretrainer.schema import SLOT_BLOCK, Specials


@dataclass(frozen=True)
class Rows:
    """Packed rows of one window."""

    tokens: np.ndarray  # [R, L] uint32
    lengths: np.ndarray  # [R] int32, ids before the padding
    starts: np.ndarray  # [n] int64, sorted offsets into tokens.ravel() where a document or a rest of one begins
    documents: int  # documents packed
    split: int  # documents that continue in another row

    @property
    def padded(self) -> int:
        """Ids of padding."""
        return int(self.tokens.size - self.lengths.sum())

    def __len__(self) -> int:
        return len(self.tokens)

    def row_starts(self, row: int) -> np.ndarray:
        """Offsets inside one row where a document begins (the first is 0, or the row is empty)."""
        length = self.tokens.shape[1]
        lo, hi = np.searchsorted(self.starts, [row * length, (row + 1) * length])
        return self.starts[lo:hi] - row * length


def join_documents(flat: np.ndarray, offsets: np.ndarray, specials: Specials) -> tuple[np.ndarray, np.ndarray]:
    """bos + tokens + eos for every document, in one array: (ids [sum(len) + 2n] uint32, begin offsets [n] int64)."""
    lengths = np.diff(offsets)
    begins = np.zeros(len(lengths), np.int64)
    if len(lengths):
        begins[1:] = np.cumsum(lengths[:-1] + 2)
    ids = np.empty(int(lengths.sum()) + 2 * len(lengths), np.uint32)
    inside = np.ones(len(ids), bool)
    ends = begins + lengths + 1
    inside[begins] = False
    inside[ends] = False
    ids[begins], ids[ends] = specials.bos, specials.eos
    ids[inside] = flat[offsets[0] : offsets[-1]] if len(offsets) else flat[:0]
    return ids, begins


def pack_concat(ids: np.ndarray, begins: np.ndarray, row_length: int, pad: int) -> Rows:
    """Concatenate and split: only the last row of a window is padded, documents continue in the next row."""
    rows = -(-len(ids) // row_length)
    tokens = np.full(rows * row_length, pad, np.uint32)
    tokens[: len(ids)] = ids
    row_begins = np.arange(rows, dtype=np.int64) * row_length
    starts = np.unique(np.concatenate([begins, row_begins]))
    split = len(np.setdiff1d(row_begins, begins))
    lengths = np.minimum(row_length, len(ids) - row_begins).astype(np.int32)
    return Rows(tokens.reshape(rows, row_length), lengths, starts, len(begins), split)


PACKERS: dict[str, Callable[[np.ndarray, np.ndarray, int, int], Rows]] = {"concat": pack_concat}


def window_permutation(rows: int, *key: object) -> np.ndarray:
    """Keyed permutation of the rows of a window: [R] int64, the same on every platform (Philox counter generator)."""
    digest = hashlib.sha256("\0".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).permutation(rows)


@dataclass(frozen=True)
class PackedRow:
    """One sequence on its way into a slot block."""

    tokens: np.ndarray  # [L] uint32
    starts: np.ndarray  # [n] int64, offsets in the row where a document or a rest of one begins
    length: int  # ids before the padding


def pack_window(
    tables: list[pa.Table], seq_len: int, packing: str, specials: Specials, key: tuple[object, ...]
) -> tuple[list[PackedRow], Rows]:
    """(rows of a window in training order, the same rows in packing order for their counts).

    `tables` have the columns of schema.TOKENIZED, in stream order; `key` names the permutation.
    """
    flats, offsets, base = [np.zeros(0, np.uint32)], [np.zeros(1, np.int64)], 0
    for table in tables:
        column = table.column("tokens").combine_chunks()
        if not len(column):
            continue
        own = column.offsets.to_numpy()
        flats.append(column.values.to_numpy(zero_copy_only=False)[own[0] : own[-1]])
        offsets.append(own[1:] - own[0] + base)
        base += int(own[-1] - own[0])
    ids, begins = join_documents(np.concatenate(flats), np.concatenate(offsets), specials)
    rows = PACKERS[packing](ids, begins, seq_len + 1, specials.pad)
    order = window_permutation(len(rows), *key)
    return [PackedRow(rows.tokens[r], rows.row_starts(int(r)), int(rows.lengths[r])) for r in order], rows


def empty_row(seq_len: int, specials: Specials) -> PackedRow:
    """A fully masked row: it fills a slot block at the end of a source."""
    return PackedRow(np.full(seq_len + 1, specials.pad, np.uint32), np.zeros(0, np.int64), 0)


def slot_block(rows: list[PackedRow], source: int, block: int, epoch: int) -> pa.Table:
    """One schema.SLOT_BLOCK row of K packed rows."""
    width = len(rows[0].tokens)
    starts = np.concatenate([row.starts + i * width for i, row in enumerate(rows)]).astype(np.int32)
    lengths = np.array([row.length for row in rows], np.int32)
    tokens = np.concatenate([row.tokens for row in rows]).astype(np.uint32)
    values = (source, block, epoch, tokens.tobytes(), starts.tobytes(), lengths.tobytes())
    return pa.table([pa.array([v], f.type) for v, f in zip(values, SLOT_BLOCK, strict=True)], schema=SLOT_BLOCK)
