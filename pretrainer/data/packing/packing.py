"""Documents to rows: arrays in, arrays out; no Ray, no storage.

A document becomes bos + tokens + eos; an empty one is bos + eos, whose target is eos. A row has seq_len + 1 token ids;
its last id is only ever a target. No mode drops an id. Shapes: R rows, P pieces of documents, L = seq_len + 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pretrainer.data.packing.placement import best_fit_decreasing, copy_pieces
from pretrainer.schema import SLOT_BLOCK, Specials


@dataclass(frozen=True)
class Rows:
    """Packed rows of one window; documents are numbered in window order."""

    tokens: np.ndarray  # [R, L] uint32
    lengths: np.ndarray  # [R] int32, ids before the padding
    starts: np.ndarray  # [n] int64, sorted offsets into tokens.ravel() where a document or a rest of one begins
    documents_at: np.ndarray  # [n] int64, the document that begins or continues at each start
    ids: int  # ids to be packed, bos and eos of every document included

    @property
    def padded(self) -> int:
        """Ids of padding."""
        return int(self.tokens.size - self.lengths.sum())

    @property
    def discarded(self) -> int:
        """Ids of documents that no row holds."""
        return int(self.ids - self.lengths.sum())

    @property
    def documents(self) -> int:
        """Documents packed."""
        return int(np.count_nonzero(np.bincount(self.documents_at)))

    @property
    def split(self) -> int:
        """Documents that stand in more than one row."""
        return int(np.count_nonzero(np.bincount(self.documents_at) > 1))

    def __len__(self) -> int:
        return len(self.tokens)

    def main_documents(self) -> np.ndarray:
        """[R] int64: the document that has most ids of each row, the first of equals."""
        row = self.starts // self.tokens.shape[1]
        ends = np.append(self.starts[1:], self.tokens.size)
        ends = np.minimum(ends, row * self.tokens.shape[1] + self.lengths[row])
        largest_first = np.lexsort((self.starts - ends, row))
        return self.documents_at[largest_first[np.searchsorted(row, np.arange(len(self)))]]

    def row(self, number: int) -> PackedRow:
        """One row by itself."""
        length = self.tokens.shape[1]
        lo, hi = np.searchsorted(self.starts, [number * length, (number + 1) * length])
        starts = self.starts[lo:hi] - number * length
        return PackedRow(self.tokens[number], starts, int(self.lengths[number]), self.documents_at[lo:hi])


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
    documents_at = np.searchsorted(begins, starts, side="right") - 1
    lengths = np.minimum(row_length, len(ids) - row_begins).astype(np.int32)
    return Rows(tokens.reshape(rows, row_length), lengths, starts, documents_at, len(ids))


def pack_best_fit(ids: np.ndarray, begins: np.ndarray, row_length: int, pad: int) -> Rows:
    """Fill rows with whole documents, only those longer than a row are cut (see placement.py).

    What is wasted falls with the rows of a window, because many documents hold a short one for nearly every gap. With
    log-normal lengths (median 400 ids, sigma 1.2) and L = 1,025 the share of padding is 1.7 % in windows of 64 rows,
    0.8 % of 128, 0.14 % of 512, 0.04 % of 4,096 (the default) and 0.007 % of 16,384.
    """
    pieces = cut_documents(begins, len(ids), row_length)
    return _lay_out(ids, pieces, *best_fit_decreasing(pieces.lengths, row_length), row_length, pad)


def pack_pad(ids: np.ndarray, begins: np.ndarray, row_length: int, pad: int) -> Rows:
    """One document per row and padding behind it; longer ones continue in rows of their own."""
    pieces = cut_documents(begins, len(ids), row_length)
    rows = np.arange(len(pieces.begins), dtype=np.int64)
    return _lay_out(ids, pieces, rows, np.zeros_like(rows), row_length, pad)


PACKERS: dict[str, Callable[[np.ndarray, np.ndarray, int, int], Rows]] = {
    "concat": pack_concat,
    "best_fit": pack_best_fit,
    "pad": pack_pad,
}


@dataclass(frozen=True)
class Pieces:
    """Documents, those longer than a row cut; in stream order."""

    begins: np.ndarray  # [P] int64, offsets into the joined ids
    lengths: np.ndarray  # [P] int64, 1 to L
    documents: np.ndarray  # [P] int64


def cut_documents(begins: np.ndarray, total: int, row_length: int) -> Pieces:
    """Cut documents, which begin at these offsets of `total` ids, into pieces of L ids and a rest.

    A rest of one id would be no target in a row of its own: it takes the id before it along, so that eos is learned.
    """
    lengths = np.diff(begins, append=total)
    counts = -(-lengths // row_length)
    ends = np.cumsum(counts)
    documents = np.repeat(np.arange(len(begins)), counts)
    number = np.arange(len(documents)) - (ends - counts)[documents]  # of the piece in its document
    piece_begins = begins[documents] + number * row_length
    piece_begins[ends[lengths % row_length == 1] - 1] -= 1
    return Pieces(piece_begins, np.diff(piece_begins, append=total), documents)


def _lay_out(
    ids: np.ndarray, pieces: Pieces, rows: np.ndarray, columns: np.ndarray, row_length: int, pad: int
) -> Rows:
    """Copy every piece to its row and column, each [P] int64; the pieces of a row fill it from the left."""
    count = int(rows.max(initial=-1)) + 1
    starts = rows * row_length + columns
    tokens = np.full(count * row_length, pad, np.uint32)
    copy_pieces(ids, pieces.begins, pieces.lengths, starts, tokens)
    lengths = np.bincount(rows, pieces.lengths, count).astype(np.int32)
    order = np.argsort(starts)
    return Rows(tokens.reshape(count, row_length), lengths, starts[order], pieces.documents[order], len(ids))


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
    documents: np.ndarray  # [n] int64, number in its window of the document that begins or continues at each start


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
    return [rows.row(int(number)) for number in order], rows


def empty_row(seq_len: int, specials: Specials) -> PackedRow:
    """A fully masked row: it fills a slot block at the end of a source."""
    nothing = np.zeros(0, np.int64)
    return PackedRow(np.full(seq_len + 1, specials.pad, np.uint32), nothing, 0, nothing)


def slot_block(rows: list[PackedRow], source: int, block: int, epoch: int) -> pa.Table:
    """One schema.SLOT_BLOCK row of K packed rows."""
    width = len(rows[0].tokens)
    starts = np.concatenate([row.starts + i * width for i, row in enumerate(rows)]).astype(np.int32)
    lengths = np.array([row.length for row in rows], np.int32)
    tokens = np.concatenate([row.tokens for row in rows]).astype(np.uint32)
    values = (source, block, epoch, tokens.tobytes(), starts.tobytes(), lengths.tobytes())
    return pa.table([pa.array([v], f.type) for v, f in zip(values, SLOT_BLOCK, strict=True)], schema=SLOT_BLOCK)
