"""Decision segments of one source: what dedup decided, chunk by chunk, with the index entries of what was kept.

    <root>/segments/<unit>-<chunk>.arrow         one chunk
    <root>/segment_pages/<first>_<last>.arrow    PAGE_CHUNKS of them, or as many as reach PAGE_BYTES

A single segment has one row per document: columns of DECISIONS, where dedup may edit texts the byte ranges that leave
them (REMOVED), and, null where it was dropped, its index entry. A page is two Arrow streams, one after the other: the
index entries of kept documents, which are all that a restore reads, and the decisions of all documents. Restoring an
index therefore reads O(position) bytes, in pages: per kept document 28 bytes and 4 per band, and with near-dup its odd
sketch of 136 bytes and up (1 to 2 bits per shingle); with lines 8 bytes for each, with repeated spans 4 for each word;
and, measured, 16 to 21 per document for its decision. What it takes in memory stands in `dedup.memory`. While it
restores, a process holds one page more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pretrainer.data.dedup.positions import position
from pretrainer.data.dedup.ragged import Ragged
from pretrainer.data.dedup.removal import remove_ranges
from pretrainer.data.dedup.sketches import Sketches
from pretrainer.data.ledger import pages
from pretrainer.data.ledger.pages import ChunkEnd, ChunkKey, ChunkPages, read_many
from pretrainer.schema import from_ipc, to_ipc
from pretrainer.storage import Store

DECISIONS = pa.schema(
    [
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("duplicate_of", pa.int64()),
        ("similarity", pa.float32()),
    ]
)

REMOVED = "removed"
"""Column of decisions where dedup may edit: large_list<int64>, first byte and end of each range, ascending."""


def decision_columns(table: pa.Table) -> pa.Table:
    """The decisions in a table that holds more."""
    return table.select([name for name in (*DECISIONS.names, REMOVED) if name in table.column_names])


def apply_decisions(docs: pa.Table, decisions: pa.Table) -> pa.Table:
    """The documents (schema.DOCUMENTS) that dedup kept of those that came to it, with what it left of their texts."""
    if REMOVED in decisions.column_names:
        texts = remove_ranges(docs.column("text"), Ragged.from_column(decisions.column(REMOVED)))
        docs = docs.set_column(docs.schema.get_field_index("text"), docs.schema.field("text"), texts)
    return docs.filter(decisions.column("kept").combine_chunks())


class SegmentInfo(NamedTuple):
    """What a page knows of one segment; `read` and `dead` are records read and dead letters of the chunk."""

    unit: int
    chunk: int
    documents: int
    kept: int
    last: bool
    read: int
    dead: int

    @property
    def key(self) -> ChunkKey:
        return ChunkKey(self.unit, self.chunk)

    @property
    def meta(self) -> dict[str, Any]:
        return {"last": self.last, "read": self.read, "dead": self.dead}


class IndexPart(NamedTuple):
    """Index entries of consecutive segments: positions [N] int64 of N kept documents and their sketches."""

    segments: list[SegmentInfo]
    positions: np.ndarray
    sketches: Sketches


def document_positions(key: ChunkKey, documents: int) -> np.ndarray:
    """Global order of the documents of a chunk: unit, chunk, document; [documents] int64."""
    return position(key.unit, key.chunk, 0) + np.arange(documents, dtype=np.int64)


def kept_positions(key: ChunkKey, kept: np.ndarray) -> np.ndarray:
    """Positions of the kept documents of a chunk, from a mask [documents] bool."""
    return document_positions(key, len(kept))[np.asarray(kept, bool)]


def join_segment(decisions: pa.Table, kept: Sketches, meta: dict) -> pa.Table:
    """Decision segment: one row per document; index entries of kept documents beside them, null for dropped ones."""
    mask = decisions.column("kept").to_numpy()
    rows = pa.array(np.cumsum(mask) - 1, mask=~mask)
    for name, column in zip(kept.to_table().column_names, kept.to_table().take(rows).columns, strict=True):
        decisions = decisions.append_column(f"entry_{name}", column)
    return decisions.replace_schema_metadata(
        {**(kept.to_table().schema.metadata or {}), b"chunk": json.dumps(meta).encode()}
    )


def split_segment(stored: pa.Table) -> tuple[pa.Table, Sketches]:
    """(decisions, index entries of the kept documents) of a segment."""
    decisions = decision_columns(stored)
    entries = stored.filter(stored.column("kept")).drop_columns(decisions.column_names)
    entries = entries.rename_columns([n.removeprefix("entry_") for n in entries.column_names])
    entries = entries.replace_schema_metadata(stored.schema.metadata)
    return decisions, Sketches.from_table(entries)


def index_part(key: ChunkKey, stored: pa.Table) -> IndexPart:
    """Index entries of one segment."""
    decisions, sketches = split_segment(stored)
    meta = json.loads(stored.schema.metadata[b"chunk"])
    positions = kept_positions(key, decisions.column("kept").to_numpy())
    info = SegmentInfo(key.unit, key.chunk, decisions.num_rows, len(sketches), **meta)
    return IndexPart([info], positions, sketches)


def join_page(stored: Sequence[tuple[ChunkKey, pa.Table]]) -> bytes:
    """Bytes of the page of these segments, as they were read back from their bytes."""
    parts = [index_part(key, table) for key, table in stored]
    entries = pa.concat_tables(
        [part.sketches.to_table().append_column("position", pa.array(part.positions)) for part in parts]
    )
    infos = json.dumps([part.segments[0] for part in parts]).encode()
    entries = entries.replace_schema_metadata({**(entries.schema.metadata or {}), b"segments": infos})
    decisions = pa.concat_tables([decision_columns(table).replace_schema_metadata() for _key, table in stored])
    return to_ipc(entries) + to_ipc(decisions)


def read_entries(source: pa.BufferReader) -> IndexPart:
    """Index entries of a page; leaves `source` in front of its decisions."""
    entries = pa.ipc.open_stream(source).read_all()
    infos = [SegmentInfo(*info) for info in json.loads(entries.schema.metadata[b"segments"])]
    return IndexPart(infos, entries.column("position").to_numpy(), Sketches.from_table(entries))


def split_page(data: bytes) -> Iterator[tuple[ChunkKey, pa.Table]]:
    """The segments of a page, as `join_segment` made them."""
    source = pa.BufferReader(data)
    part = read_entries(source)
    decisions = pa.ipc.open_stream(source).read_all()
    row = entry = 0
    for info in part.segments:
        sketches = part.sketches.select(slice(entry, entry + info.kept))
        yield info.key, join_segment(decisions.slice(row, info.documents), sketches, info.meta)
        row, entry = row + info.documents, entry + info.kept


class SegmentLog:
    """Reads and creates decision segments; whether they are contiguous, the reader of their content checks."""

    def __init__(self, root: Store) -> None:
        self.root = root
        self.pages = ChunkPages(root, "segment_pages", "arrow")

    def create(self, key: ChunkKey, data: bytes) -> None:
        self.root.create(single_path(key), data)

    def get(self, key: ChunkKey) -> pa.Table:
        return from_ipc(self.root.read(single_path(key)))

    def __iter__(self) -> Iterator[tuple[ChunkKey, pa.Table]]:
        """All segments in curation order."""
        for span in self.pages.refresh():
            yield from split_page(self.root.read(span.path))
        yield from ((key, from_ipc(data)) for key, data in self.behind(self.pages.end.key))

    def paged_index(self) -> Iterator[IndexPart]:
        """Index entries of the pages, one page at a time."""
        for span in self.pages.refresh():
            yield read_entries(pa.BufferReader(self.root.read(span.path)))

    def behind(self, key: ChunkKey) -> Iterator[tuple[ChunkKey, bytes]]:
        """Single segments behind a chunk; one LIST."""
        paths = [path for path, _size, _version in self.root.list("segments", after=f"{key.name}.arrow")]
        keys = (ChunkKey.parse(path.rsplit("/", 1)[-1]) for path in paths)
        yield from zip(keys, read_many(self.root, paths), strict=True)


class SegmentPager:
    """Writes the pages of segments; for the one actor that decides in order. Holds at most a page of them."""

    def __init__(self, log: SegmentLog) -> None:
        self.log = log
        self._open: list[tuple[ChunkKey, bytes]] = []
        self._bytes = 0

    def add(self, key: ChunkKey, last: bool, data: bytes) -> None:
        """The segment behind those in pages and those added: writes the page if it is full."""
        self._open.append((key, data))
        self._bytes += len(data)
        if len(self._open) >= pages.PAGE_CHUNKS or self._bytes >= pages.PAGE_BYTES:
            page = join_page([(each, from_ipc(held)) for each, held in self._open])
            self.log.pages.create(self._open[0][0], ChunkEnd(key, last), page)
            self._open, self._bytes = [], 0


def single_path(key: ChunkKey) -> str:
    return f"segments/{key.name}.arrow"
