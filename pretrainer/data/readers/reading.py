"""What every reader speaks: a `Reading` goes in, `Record`s come out, and a `Resume` tells where to go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from pretrainer.config import ExtractConfig, SourceConfig
from pretrainer.data.readers.decompress import MemberStarts, Start, decompressed, skipped
from pretrainer.data.readers.units import Piece, shard_format
from pretrainer.errors import SourceError
from pretrainer.schema import QUARANTINED
from pretrainer.storage import RetryingFile, Store, redact

NEWLINE = b"\n"


class Record(NamedTuple):
    """One record, dead letter (text None, reason set) or counted drop (`is_dropped` as well) as a reader gives it.

    A dead letter could not be read; a drop could, and is nothing to train on. `start` places it in the unit
    (decompressed bytes); `size` is the bytes it took, `row` its number in the shard. `offset` is its place in its piece
    where `start` is only a nominal one.
    """

    start: int
    size: int
    row: int
    id: str | None
    text: str | None
    reason: str = ""
    detail: str = ""
    offset: int | None = None
    url: str = ""
    language: str = ""
    scores: tuple[float, ...] = ()
    is_dropped: bool = False


class Stop(NamedTuple):
    """A verdict in `data.quarantine`: of a piece the record `row` is left out, or (`is_rest`) all that is behind it."""

    piece: int  # of its unit; behind the reader, where a document has none, its shard
    row: int
    is_rest: bool
    cause: str
    reason: str = QUARANTINED  # of the dead letter


class Resume(NamedTuple):
    """Where the reader of a unit goes on: in front of one record. Plain numbers, kept in the ledger."""

    piece: int = 0  # number of the record's piece in the unit
    base: int = 0  # decompressed bytes of the pieces before it
    row: int = 0  # of the record, as its reader counts
    offset: int = 0  # decompressed bytes (Parquet: of text) of the piece before the record
    before: int = 0  # `decompress.Start` of the member or row group that holds the record
    address: int = 0


BEGINNING = Resume()


@dataclass(frozen=True)
class Reading:
    """What a reader is given: one piece, the config, the limits, and where the piece starts in the unit.

    It begins at `resume`, which must be in this piece, and notes in `starts` where the piece can be entered.
    """

    piece: Piece
    source: SourceConfig
    chunk_bytes: int
    max_document_bytes: int
    block_bytes: int
    resume: Resume
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    starts: MemberStarts = field(default_factory=MemberStarts)
    left_out: frozenset[int] = frozenset()  # rows of records whose text nobody will see

    def __post_init__(self) -> None:
        self.starts.passed[:] = [Start(self.resume.before, self.resume.address)]

    @property
    def base(self) -> int:
        return self.resume.base

    def resume_at(self, record: Record) -> Resume:
        """Where to go on so that this record is the next; records of later calls must not come before it."""
        offset = record.start - self.base if record.offset is None else record.offset
        is_parquet = self.format == "parquet"
        start = self.starts.before(record.row if is_parquet else offset)
        return Resume(self.resume.piece, self.base, record.row, offset, start.before, start.address)

    @property
    def format(self) -> str:
        return shard_format(self.piece.path, self.source.format)[0]

    @property
    def compression(self) -> str | None:
        return shard_format(self.piece.path, self.source.format)[1]

    @property
    def is_whole(self) -> bool:
        return self.piece.end is None

    def open(self) -> RetryingFile:
        """The shard's file; SourceError if it is gone or has another size than in the manifest."""
        where = f"source {self.source.name}: shard {self.piece.path} below {redact(self.piece.root)}"
        try:
            file = Store(self.piece.root).file(self.piece.path)
        except FileNotFoundError:
            raise SourceError(f"{where} is missing: put it back, or begin a new run") from None
        if file.size != self.piece.size:
            raise SourceError(f"{where} changed (size {self.piece.size:,} -> {file.size:,} bytes): "
                              "put the old object back, or begin a new run")
        return file

    def content(self, file: RetryingFile) -> Iterator[bytes]:
        """Bytes of a piece from `resume` on, compressed or not; CorruptStreamError where it is damaged."""
        if self.compression is None:
            return file.blocks(self.resume.offset, None, self.block_bytes)
        return self.decompressed(file)

    def decompressed(self, file: RetryingFile) -> Iterator[bytes]:
        """Bytes of a compressed piece from `resume` on; CorruptStreamError where it is damaged."""
        blocks = file.blocks(self.resume.address, None, self.block_bytes)
        return skipped(decompressed(blocks, self.compression, self.starts), self.resume.offset - self.resume.before)

    def default_id(self, row: int) -> str:
        return f"{self.piece.path}#{row}"

    def refused(self, start: int, size: int, row: int, reason: str, detail: str) -> Record:
        return Record(self.base + start, size, row, None, None, reason, detail)

    def dropped(self, start: int, size: int, row: int, reason: str) -> Record:
        return Record(self.base + start, size, row, None, None, reason, is_dropped=True)

    def document(self, start: int, row: int, data: bytes, size: int | None = None) -> Record:
        """The record of one text, or its dead letter."""
        taken = len(data) if size is None else size
        if len(data) > self.max_document_bytes:
            detail = f"{len(data):,} bytes, at most {self.max_document_bytes:,}"
            return self.refused(start, taken, row, "too_long", detail)
        try:
            return Record(self.base + start, taken, row, self.default_id(row), data.decode("utf-8"))
        except UnicodeDecodeError as error:
            detail = f"{error.reason} at byte {error.start} of the record"
            return self.refused(start, taken, row, "invalid_utf8", detail)


Reader = Callable[[Reading], Generator[Record, None, int]]
"""Yields the records of a piece and returns its decompressed bytes."""


def has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def plain_text(value: object) -> str:
    """A cell of a url or language column as text; "" where there is none or it is no valid text."""
    return value if isinstance(value, str) and not has_surrogate(value) else ""


def number(value: object) -> float:
    """A cell of a score column; NaN where it is no number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # JSON's integers have no limit
        return math.nan


def document_id(value: object, default: str) -> str:
    """The id as a string (numbers and others as JSON writes them), or the default if there is none."""
    if value is None or value == "":
        return default
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return default if has_surrogate(text) else text
