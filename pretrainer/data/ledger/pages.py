"""Pages: consecutive entries of a log as one object, so that a resume reads a few large objects, not many small ones.

    <root>/<folder>/<first chunk>_<last chunk>-<e|m>.<ending>     `e` when the last chunk ends its unit

A page is a pure function of the entries that it holds and is created once, by the in-order actor that sees them; the
single entries stay. Its name sorts in order and tells its range: one LIST of names tells what is committed, and the
page of a chunk is found by name. A page counts only if it goes on where the one before it ends. Behind the last page
the single entries count, so a crash between the last of them and their page loses nothing: the next pass in order
writes the page.

Cost for N chunks: N / PAGE_CHUNKS pages of records and windows, one LIST request per 1,000 pages, and at most
PAGE_CHUNKS and the chunks in flight are single entries behind the last page.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from pretrainer.storage import Store

PAGE_CHUNKS = 1000
"""Entries of a page."""
PAGE_BYTES = 64 * 2**20
"""A page of decision segments ends earlier, with the one that reaches so many bytes."""
READ_THREADS = 16
CACHED_PAGES = 8
"""Parsed pages that a process keeps of each kind, about 1 MB each."""


@dataclass(frozen=True, order=True)
class ChunkKey:
    """Curation position of a unit and the number of the chunk inside it; sorts in curation order."""

    unit: int
    chunk: int

    @property
    def name(self) -> str:
        return f"{self.unit:09d}-{self.chunk:05d}"

    @classmethod
    def parse(cls, name: str) -> ChunkKey:
        unit, chunk = name.split("-")[:2]
        return cls(int(unit), int(chunk.split(".")[0]))

    def follows(self, before: ChunkKey, before_was_last: bool) -> bool:
        """Whether this chunk comes directly after `before`."""
        return self == (ChunkKey(before.unit + 1, 0) if before_was_last else ChunkKey(before.unit, before.chunk + 1))


class ChunkEnd(NamedTuple):
    """A chunk and whether it ends its unit: what names of records and pages end with."""

    key: ChunkKey
    last: bool

    @property
    def name(self) -> str:
        return f"{self.key.name}-{'e' if self.last else 'm'}"

    @classmethod
    def parse(cls, path: str) -> ChunkEnd:
        """Inverse of `name`, from a path."""
        name = path.rsplit("/", 1)[-1].rsplit("_", 1)[-1].partition(".")[0]
        return cls(ChunkKey.parse(name), name.endswith("-e"))


START = ChunkEnd(ChunkKey(0, -1), False)
"""What the first chunk of a log follows; its name sorts before all others."""


class Span(NamedTuple):
    """A page by its name: the chunks first … end.key."""

    path: str
    first: ChunkKey
    end: ChunkEnd


class ChunkPages:
    """The pages of one folder over entries that are named by chunk."""

    def __init__(self, root: Store, folder: str, ending: str) -> None:
        self.root, self.folder, self.ending = root, folder, ending
        self._spans: list[Span] | None = None

    def refresh(self) -> list[Span]:
        """The pages there are, without a gap from the first chunk on; one LIST."""
        spans: list[Span] = []
        end = START
        for path, _size, _version in self.root.list(self.folder):
            first = ChunkKey.parse(path.rsplit("/", 1)[-1].partition("_")[0])
            if first.follows(*end):
                end = ChunkEnd.parse(path)
                spans.append(Span(path, first, end))
        self._spans = spans
        return spans

    @property
    def spans(self) -> list[Span]:
        """The pages as of the last LIST of this process, and those that it has written."""
        return self.refresh() if self._spans is None else self._spans

    @property
    def end(self) -> ChunkEnd:
        """The last chunk in a page."""
        return self.spans[-1].end if self.spans else START

    def find(self, key: ChunkKey) -> Span | None:
        """The page of a chunk, if there is one."""
        at = bisect_left(self.spans, key, key=lambda span: span.end.key)
        return self.spans[at] if at < len(self.spans) else None

    def create(self, first: ChunkKey, end: ChunkEnd, data: bytes) -> None:
        """Write the page of the chunks behind the last page, first … end."""
        assert first.follows(*self.end)
        path = f"{self.folder}/{first.name}_{end.name}.{self.ending}"
        self.root.create(path, data)
        self.spans.append(Span(path, first, end))


def read_many(store: Store, paths: Sequence[str]) -> Iterator[bytes]:
    """The objects in the order of their paths, READ_THREADS at a time."""
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for start in range(0, len(paths), READ_THREADS):
            yield from pool.map(store.read, paths[start : start + READ_THREADS])
