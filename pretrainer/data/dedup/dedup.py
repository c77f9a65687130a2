"""Exact and near-duplicate decisions: which documents of a stream are kept, decided in its order.

The rules, each with a test:

- The survivor is the earliest document in the order. Only kept documents enter the index.
- A look-up ignores entries at or after the document's own position. So a chunk that is decided again on a live
  index, or on one that was rebuilt from recorded sketches, gets its first answer; no document matches itself.
- Exact: equal 128-bit hashes of `dedup_key`. Near: a shared LSH band makes a *candidate* (Leskovec, Rajaraman, Ullman,
  Mining of Massive Datasets, section 3.4), and only the share of equal values over *all* permutations, at least
  `threshold`, drops it; never a band alone, never a similarity through a third document.
- A document with fewer than MIN_SHINGLES shingles is exempt from near-dup: its similarity is a step function of a few
  words (one changed word of 14 changes five of ten 5-grams). It neither looks up nor is found; exact dedup sees it.
- Held-out documents have negative positions, so they precede all training documents and win against them.

Cost per kept document: 4 P + 8 (B + 2) + 24 bytes of entry and 16 (B + 2) bytes of hash slots at a load of 3/8 to 3/4,
with P = 256 and B = 18 about 1.2 KB + 0.4 to 0.9 KB; up to a third of the entries is spare room after growing.
A look-up costs B hash probes and one comparison of P values per candidate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pretrainer.config import DedupConfig
from pretrainer.data.dedup import lsh, minhash
from pretrainer.data.filters.normalise import exact_hashes
from pretrainer.errors import StreamError

MIN_SHINGLES = 10
"""Documents with fewer shingles are exempt from near-dup."""

DUPLICATE_EXACT, DUPLICATE_NEAR = "duplicate_exact", "duplicate_near"
HELD_OUT, HELD_OUT_NEAR = "held_out", "held_out_near"

NO_DUPLICATE = np.iinfo(np.int64).min
"""`Decisions.duplicate_of` of a kept document; no document has this position."""

_UNIT_BITS, _CHUNK_BITS, _DOC_BITS = 28, 15, 20


def position(unit: int, chunk: int, doc: int) -> int:
    """Place of a document in its source's order: unit << 35 | chunk << 20 | doc; raises StreamError if out of range."""
    for name, value, bits in (("unit", unit, _UNIT_BITS), ("chunk", chunk, _CHUNK_BITS), ("doc", doc, _DOC_BITS)):
        if not 0 <= value < 1 << bits:
            raise StreamError(f"{name}={value} does not fit into {bits} bits of a document's position")
    return unit << (_CHUNK_BITS + _DOC_BITS) | chunk << _DOC_BITS | doc


def held_out_position(index: int) -> int:
    """Negative place of the index-th held-out document; ascending with the index, before all training documents."""
    if not 0 <= index < 1 << 62:
        raise StreamError(f"index={index} of a held-out document is out of range")
    return index - (1 << 62)


def held_out_index(position: int) -> int:
    """Inverse of `held_out_position`."""
    return position + (1 << 62)


def split_position(position: int) -> tuple[int, int, int]:
    """(unit, chunk, doc): inverse of `position`."""
    unit, rest = divmod(position, 1 << (_CHUNK_BITS + _DOC_BITS))
    return unit, *divmod(rest, 1 << _DOC_BITS)



@dataclass(frozen=True)
class Sketches:
    """What dedup needs to know of N documents; P is 0 where near-dup is off."""

    hashes: np.ndarray  # [N, 2] uint64, (high, low) of the exact hash
    minhash: np.ndarray  # [N, P] uint32
    shingle_count: np.ndarray  # [N] int32
    scheme: str

    def __len__(self) -> int:
        return len(self.hashes)

    def select(self, which: np.ndarray | slice) -> Sketches:
        """The documents of a mask [N] bool, of indices [M] in that order, or of a slice."""
        return Sketches(self.hashes[which], self.minhash[which], self.shingle_count[which], self.scheme)

    def to_table(self) -> pa.Table:
        """Columns hash (16 bytes big-endian), minhash (4 P bytes, little-endian), shingle_count; scheme as metadata."""
        columns = [
            _fixed_binary(self.hashes.astype(">u8")),
            _fixed_binary(self.minhash.astype("<u4")),
            pa.array(self.shingle_count, pa.int32()),
        ]
        schema = pa.schema(
            [(name, column.type) for name, column in zip(("hash", "minhash", "shingle_count"), columns, strict=True)],
            metadata={"scheme": self.scheme},
        )
        return pa.Table.from_arrays(columns, schema=schema)

    @classmethod
    def from_table(cls, table: pa.Table) -> Sketches:
        """Inverse of `to_table`; raises StreamError if the table does not name its scheme."""
        scheme = (table.schema.metadata or {}).get(b"scheme")
        if scheme is None:
            raise StreamError("a table of sketches does not name its MinHash scheme, so it cannot be compared")
        hashes = _from_fixed_binary(table.column("hash"), ">u8").astype(np.uint64)
        signatures_ = _from_fixed_binary(table.column("minhash"), "<u4").astype(np.uint32)
        return cls(hashes, signatures_, table.column("shingle_count").to_numpy().astype(np.int32), scheme.decode())


def _fixed_binary(rows: np.ndarray) -> pa.Array:
    contiguous = np.ascontiguousarray(rows)
    width = rows.shape[1] * rows.itemsize
    return pa.Array.from_buffers(pa.binary(width), len(rows), [None, pa.py_buffer(contiguous)])


def _from_fixed_binary(column: pa.ChunkedArray, dtype: str) -> np.ndarray:
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    width = column.type.byte_width
    data = np.frombuffer(array.buffers()[1], np.uint8) if len(array) and width else np.zeros(0, np.uint8)
    rows = data[array.offset * width : (array.offset + len(array)) * width]
    return rows.view(dtype).reshape(len(array), width // np.dtype(dtype).itemsize)


def scheme_of(config: DedupConfig) -> str:
    """The scheme id of this config's sketches."""
    return minhash.scheme_id(config.shingle_words, config.permutations) if config.near else "exact-only"


def signatures(texts: pa.Array | pa.ChunkedArray, config: DedupConfig) -> Sketches:
    """Sketches of N texts; a pure function of each text and the config."""
    hashes = exact_hashes(texts)
    if config.near:
        values, counts = minhash.signatures(texts, config.shingle_words, config.permutations)
    else:
        values, counts = np.zeros((len(hashes), 0), np.uint32), np.zeros(len(hashes), np.int32)
    return Sketches(hashes, values, counts, scheme_of(config))


@dataclass(frozen=True)
class Decisions:
    """What became of N documents."""

    kept: np.ndarray  # [N] bool
    reasons: list[str | None]  # None if kept
    duplicate_of: np.ndarray  # [N] int64, position of the earliest document that it duplicates, or NO_DUPLICATE
    similarity: np.ndarray  # [N] float32, estimated Jaccard; 1 for exact duplicates, 0 if kept


class DedupIndex:
    """The kept documents of one source (and its held-out ones), ready to be looked up. Not safe for threads."""

    def __init__(self, config: DedupConfig) -> None:
        self._config = config
        self._scheme = scheme_of(config)
        self._permutations = config.permutations if config.near else 0
        self._bands = config.bands if config.near else 0
        # ceil with a slack for thresholds such as 0.7, whose product with P may come out a hair above the integer.
        self._min_equal = math.ceil(config.threshold * config.permutations - 1e-9)
        self._tables = lsh.empty_tables(1024, 1 << 16, self._permutations, self._bands)

    def __len__(self) -> int:
        """Documents in the index."""
        return int(self._tables.used[0])

    def memory_bytes(self) -> int:
        """Bytes of all arrays, spare room included."""
        return sum(array.nbytes for array in self._tables)

    def decide(self, positions: np.ndarray, sketches: Sketches) -> Decisions:
        """Decide N documents at strictly ascending positions [N] int64 and insert those that are kept.

        Raises StreamError if positions do not ascend, if the sketches have another scheme, or if another document is
        already recorded at one of the positions.
        """
        if np.any(np.diff(positions) <= 0):
            raise StreamError("documents were not given to dedup in their order")
        keys, where, hashes, values, in_bands = self._prepare(positions, sketches)
        found, equal = np.empty(len(sketches), np.int64), np.empty(len(sketches), np.int64)
        contradiction = lsh.decide_all(self._tables, keys, where, hashes, values, in_bands,
                                       self._config.exact, self._min_equal, found, equal)
        _refuse_contradiction(where, contradiction)
        return self._decisions(found, equal)

    def insert(self, positions: np.ndarray, sketches: Sketches) -> None:
        """Insert N documents as kept, in any order: recorded ones of a rebuild, or held-out ones.

        A document that is there already changes nothing. Raises StreamError as `decide` does.
        """
        keys, where, hashes, values, in_bands = self._prepare(positions, sketches)
        _refuse_contradiction(where, lsh.insert_all(self._tables, keys, where, hashes, values, in_bands))

    def _prepare(
        self, positions: np.ndarray, sketches: Sketches
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(keys [N, B + 2], positions, hashes, minhash, in_bands) with room for N more entries made."""
        if sketches.scheme != self._scheme:
            raise StreamError(f"sketches of scheme {sketches.scheme!r} do not compare with those of {self._scheme!r}")
        if len(positions) != len(sketches):
            raise StreamError(f"{len(positions)} positions for {len(sketches)} documents")
        # One type for all calls (writable, C order): numba compiles anew for every other.
        where = np.require(positions, np.int64, ["C", "W"])
        hashes = np.require(sketches.hashes, np.uint64, ["C", "W"])
        values = np.require(sketches.minhash, np.uint32, ["C", "W"])
        keys = np.empty((len(sketches), self._bands + 2), np.uint64)
        lsh.make_keys(where, hashes, values, self._config.rows_per_band, keys)
        self._make_room(len(sketches))
        return keys, where, hashes, values, np.require(sketches.shingle_count >= MIN_SHINGLES, bool, ["C", "W"])

    def _decisions(self, found: np.ndarray, equal: np.ndarray) -> Decisions:
        kept = found == lsh.NONE
        duplicate_of = np.where(kept, NO_DUPLICATE, self._tables.positions[found])
        share = np.where(equal < 0, 1.0, equal / max(1, self._permutations)).astype(np.float32)
        return Decisions(kept, [_reason(*pair) for pair in zip(duplicate_of.tolist(), equal.tolist(), strict=True)],
                         duplicate_of, share)

    def _make_room(self, documents: int) -> None:
        """Grow entries by half and slots by doubling, so that `documents` more fit at a load of at most 3/4."""
        entries, columns = self._tables.next_node.shape
        needed = len(self) + documents
        if needed > entries:
            self._tables = _grown(self._tables, max(needed, entries + entries // 2))
        slots_needed = 4 * (int(self._tables.used[1]) + documents * columns) // 3 + 1
        if slots_needed > self._tables.slot_keys.size:
            size = 1 << (slots_needed - 1).bit_length()
            keys, heads = np.zeros(size, np.uint64), np.zeros(size, np.int64)
            lsh.rehash(self._tables.slot_keys, self._tables.slot_heads, keys, heads)
            self._tables = self._tables._replace(slot_keys=keys, slot_heads=heads)


def _grown(tables: lsh.Tables, entries: int) -> lsh.Tables:
    """The same tables with room for `entries` documents; at most one array is held twice at a time."""
    def resized(array: np.ndarray, fill: int) -> np.ndarray:
        larger = np.full((entries, *array.shape[1:]), fill, array.dtype)
        larger[: len(array)] = array
        return larger

    return tables._replace(
        next_node=resized(tables.next_node, lsh.NONE), positions=resized(tables.positions, 0),
        hashes=resized(tables.hashes, 0), minhash=resized(tables.minhash, 0),
    )


def _refuse_contradiction(positions: np.ndarray, which: int) -> None:
    if which != lsh.NONE:
        raise StreamError(f"another document is already recorded at position {positions[which]}")


def _reason(duplicate_of: int, equal: int) -> str | None:
    if duplicate_of == NO_DUPLICATE:
        return None
    if duplicate_of < 0:
        return HELD_OUT if equal < 0 else HELD_OUT_NEAR
    return DUPLICATE_EXACT if equal < 0 else DUPLICATE_NEAR
