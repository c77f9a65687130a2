"""Readers: from the pieces of a unit to chunks of documents.

A record belongs to the chunk in whose range of `chunk_bytes` it starts, counted in decompressed bytes from the
beginning of the unit. So borders depend on content alone, and a compressed shard that is a unit has the chunks that
its uncompressed twin has as byte ranges (but for chunks without records at its end). Content that cannot be read is
a dead letter and never an exception; StorageError, and SourceError for a shard that is gone, changed or without the
column, are raised.

The report of each chunk but the last says where the next one begins (`Resume`), so that reading can go on there: the
pieces before are not opened, a compressed shard is decompressed from its last member start on but not parsed up to
the place, Parquet is read from the row group on. What follows is the same, chunk by chunk.

| reason | meaning |
|---|---|
| invalid_utf8 | bytes that are no UTF-8, or a JSON string with a lone surrogate |
| bad_json, not_an_object | a line that is no JSON, or JSON of another type |
| missing_column, null_text, text_not_string | a JSON object (or Parquet row) without usable text |
| too_long | a record of more than `data.max_document_bytes` (for JSON the line counts) |
| quarantined | content that kills its reader, see `data.quarantine` |
| corrupt_shard | the rest of the shard cannot be read; the records before it are kept |
| bad_xml | a page of a wiki that is no XML |
| page_*, extraction_* | HTML without text, see `extract` |

What can be read and is no document of its format is a counted drop in `report.dropped`: warc_* (`warc`), wikipedia_*
(`wikipedia`), extraction_empty.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from pretrainer.config import ExtractConfig, SourceConfig
from pretrainer.data.readers.html import read_html
from pretrainer.data.readers.jsonl import read_jsonl
from pretrainer.data.readers.parquet import read_parquet
from pretrainer.data.readers.reading import BEGINNING, Reader, Reading, Record, Resume, Stop
from pretrainer.data.readers.text import read_text
from pretrainer.data.readers.units import Piece
from pretrainer.data.readers.warc import read_warc
from pretrainer.data.readers.wikipedia import read_wikipedia
from pretrainer.schema import DOCUMENTS, QUARANTINED, ChunkReport, DeadLetter
from pretrainer.storage import BLOCK_BYTES

READERS: dict[str, Reader] = {
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "text": read_text,
    "warc": read_warc,
    "html": read_html,
    "wikipedia": read_wikipedia,
}
"""The words that `SourceConfig.format` knows, next to auto."""
_EXTRACT = ExtractConfig()
Watch = Callable[[int, int], None]
"""Told (piece, row of its last record, -1 if none) before each record is read."""


def unwatched(_piece: int, _row: int) -> None:
    pass


class _Chunk:
    """Documents and report of the chunk that is being filled."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.columns: list[list[Any]] = [[] for _ in DOCUMENTS]
        self.report = ChunkReport()

    def add(self, piece: Piece, record: Record) -> None:
        self.report.read += 1
        self.report.bytes_read += record.size
        if record.is_dropped:
            self.report.drop(record.reason)
            return
        if record.text is None:
            letter = DeadLetter(self.source, piece.path, record.row, record.reason, record.detail)
            self.report.dead_letters.append(letter)
            return
        place = (record.id, piece.shard, record.row)
        values = (*place, record.text, record.url, record.language, "", record.scores)
        for column, value in zip(self.columns, values, strict=True):
            column.append(value)

    def finish(self, next_: Resume | None) -> tuple[pa.Table, ChunkReport, bool]:
        self.report.next = next_._asdict() if next_ else None
        return pa.table(self.columns, schema=DOCUMENTS), self.report, next_ is None


def read_unit(
    pieces: Sequence[Piece],
    source: SourceConfig,
    chunk_bytes: int,
    max_document_bytes: int,
    block_bytes: int = BLOCK_BYTES,
    first_chunk: int = 0,
    resume: Resume = BEGINNING,
    extract: ExtractConfig = _EXTRACT,
    stops: Sequence[Stop] = (),
    watch: Watch = unwatched,
) -> Iterator[tuple[pa.Table, ChunkReport, bool]]:
    """The chunks of one unit in order: (documents as schema.DOCUMENTS, report, whether it is the last one).

    There is always at least one chunk, and one without records where a long record covers its whole range. The
    report has read, bytes_read (decompressed, text bytes for Parquet), dead_letters, next and the reader's own drops;
    later stages fill kept and the rest of dropped. `block_bytes` is how much is asked of storage at a time and changes
    nothing else. With `first_chunk` and the `next` of the chunk before it as `resume`, only that chunk and those after
    it are given. `stops` are left out; `watch` is told the piece and the row of the last record before each is read.
    """
    chunk, border = _Chunk(source.name), (first_chunk + 1) * chunk_bytes
    limits = (chunk_bytes, max_document_bytes, block_bytes)
    for reading, record in _records(pieces, source, limits, resume, extract, stops, watch):
        while record.start >= border:
            yield chunk.finish(reading.resume_at(record))
            chunk, border = _Chunk(source.name), border + chunk_bytes
        chunk.add(reading.piece, record)
    yield chunk.finish(None)


def _records(
    pieces: Sequence[Piece],
    source: SourceConfig,
    limits: tuple[int, int, int],
    resume: Resume,
    extract: ExtractConfig,
    stops: Sequence[Stop],
    watch: Watch,
) -> Iterator[tuple[Reading, Record]]:
    for number in range(resume.piece, len(pieces)):
        here = [stop for stop in stops if stop.piece == number]
        left_out = frozenset(stop.row for stop in here if not stop.is_rest)
        reading = Reading(pieces[number], source, *limits, resume, extract, left_out=left_out)
        size = yield from _labelled(reading, READERS[reading.format](reading), here, partial(watch, number))
        resume = Resume(number + 1, reading.base + size)


def _labelled(
    reading: Reading, records: Generator[Record, None, int], stops: Sequence[Stop], watch: Callable[[int], None]
) -> Generator[tuple[Reading, Record], None, int]:
    """The reader's records with their reading; returns what the reader returns, the decompressed bytes of its piece.

    Where the rest is left out that is the size of the piece, or what was read if that is more.
    """
    rest = next((stop for stop in stops if stop.is_rest), None)
    single = {stop.row: stop for stop in stops if not stop.is_rest}
    row, at = reading.resume.row - 1, reading.resume.offset
    while rest is None or row < rest.row:
        watch(row)
        try:
            record = next(records)
        except StopIteration as stop:
            return int(stop.value)
        row, at = record.row, record.start + record.size - reading.base
        if row in single:
            reason, detail = single[row].reason, single[row].cause
            record = record._replace(id=None, text=None, reason=reason, detail=detail, is_dropped=False)
        yield reading, record
    detail = f"the rest of the shard: {rest.cause}"
    yield reading, reading.refused(at, 0, row + 1, QUARANTINED, detail)._replace(offset=at)
    return max(at, reading.piece.size if reading.is_whole else (reading.piece.end or 0) - reading.piece.start)
