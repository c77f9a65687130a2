"""Committed records of the chunks of one source, singly and in pages.

    <root>/chunks/<unit>-<chunk>-<e|m>.json   one record; `e` when it is the last chunk of its unit
    <root>/chunk_pages/<first>_<last>.jsonl   PAGE_CHUNKS of them, a line each (about 0.3 MB)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache

from pretrainer.data.ledger import pages
from pretrainer.data.ledger.pages import ChunkEnd, ChunkKey, ChunkPages, read_many
from pretrainer.storage import Store


@dataclass(frozen=True)
class ChunkRecord:
    """Committed record of one chunk; `next` is where reading goes on in its unit, see `readers.read_unit`."""

    unit: int
    chunk: int
    last: bool
    read: int
    kept: int
    bytes_read: int
    bytes_kept: int
    tokens: int
    tokens_digest: str
    dropped: dict[str, int] = field(default_factory=dict)
    dead_letters: int = 0
    quarantined: int = 0  # dead letters of content that killed its reader
    next: dict[str, int] | None = None

    @property
    def key(self) -> ChunkKey:
        return ChunkKey(self.unit, self.chunk)

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ChunkRecord:
        return cls(**json.loads(data))


class RecordLog:
    """Reads and creates records; only the contiguous prefix of them counts."""

    def __init__(self, root: Store) -> None:
        self.root = root
        self.pages = ChunkPages(root, "chunk_pages", "jsonl")
        self._singly_read = 0  # since the pages were listed

    def create(self, record: ChunkRecord) -> None:
        """A repeat with the same content is a no-op."""
        self.root.create(single_path(ChunkEnd(record.key, record.last)), record.to_bytes())

    def tail(self) -> list[ChunkEnd]:
        """The chunks committed behind the last page, without a gap; two LISTs, no record is read."""
        self.pages.refresh()
        end, found = self.pages.end, list[ChunkEnd]()
        for path, _size, _version in self.root.list("chunks", after=f"{end.name}.json"):
            here = ChunkEnd.parse(path)
            if not here.key.follows(*end):
                break
            end = here
            found.append(here)
        return found

    def newest(self) -> ChunkEnd:
        """The last chunk of the contiguous prefix; two LISTs, no record is read."""
        tail = self.tail()
        return tail[-1] if tail else self.pages.end

    def __iter__(self) -> Iterator[ChunkRecord]:
        """Records of the contiguous prefix, in curation order."""
        tail = self.tail()
        for span in self.pages.spans:
            yield from _parse_page(self.root.read(span.path))
        yield from map(ChunkRecord.from_bytes, read_many(self.root, list(map(single_path, tail))))

    def get(self, key: ChunkKey) -> ChunkRecord | None:
        """The record of one chunk, or None where it is not committed."""
        span = self.pages.find(key)
        if span is not None:
            return _read_page(self.root, span.path).get(key)
        self._singly_read += 1
        if self._singly_read % pages.PAGE_CHUNKS == 0:
            self.pages.refresh()  # another process may have written a page over those that come next
        for last in (True, False):
            try:
                return ChunkRecord.from_bytes(self.root.read(single_path(ChunkEnd(key, last))))
            except FileNotFoundError:
                continue
        return None


class RecordPager:
    """Writes the pages of records; for the one actor that sees the chunks of epoch 0 in order."""

    def __init__(self, log: RecordLog) -> None:
        self.log = log
        self._open: list[ChunkEnd] | None = None  # chunks behind the last page; looked up when the first chunk passes

    def passed(self, key: ChunkKey, last: bool) -> None:
        """A chunk passes, its record and those before it committed: writes the pages that have become full."""
        newest = self._open[-1] if self._open else self.log.pages.end
        if self._open is not None and key.follows(*newest):
            self._open.append(ChunkEnd(key, last))
        elif self._open is None or key > newest.key:
            self._open = self.log.tail()
        while len(self._open) >= pages.PAGE_CHUNKS:
            self._write(self._open[: pages.PAGE_CHUNKS])
            del self._open[: pages.PAGE_CHUNKS]

    def _write(self, chunks: list[ChunkEnd]) -> None:
        lines = read_many(self.log.root, list(map(single_path, chunks)))
        self.log.pages.create(chunks[0].key, chunks[-1], b"".join(line + b"\n" for line in lines))


def single_path(chunk: ChunkEnd) -> str:
    return f"chunks/{chunk.name}.json"


def _parse_page(data: bytes) -> Iterator[ChunkRecord]:
    return map(ChunkRecord.from_bytes, data.splitlines())


@lru_cache(maxsize=pages.CACHED_PAGES)
def _read_page(root: Store, path: str) -> dict[ChunkKey, ChunkRecord]:
    return {record.key: record for record in _parse_page(root.read(path))}
