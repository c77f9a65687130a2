"""The log of closed pack windows of one source, singly and in pages.

    <root>/windows/<number>.json                one window
    <root>/window_pages/<begin>_<end>.jsonl     PAGE_CHUNKS of them, a line each (about 0.5 MB)

`begin` and `end` are <window>-<sequence>-<stream position of the unit>-<chunk>: of the first window of the page, and of
what comes behind its last one. So the window of a sequence or of a chunk costs one GET in a page. Behind the last page
it costs a binary search: at most 10 GETs of single windows.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from pretrainer.data.ledger import pages
from pretrainer.data.ledger.pages import read_many
from pretrainer.data.packing.shuffle_quality import ShuffleQuality
from pretrainer.storage import Store

At = tuple[int, int]  # (stream position of the unit, chunk in the unit)


@dataclass(frozen=True)
class Window:
    """A closed pack window: consecutive chunks of the stream and the sequences made of them."""

    window: int
    epoch: int
    first: At  # its first chunk
    after: At  # the first chunk after it
    first_sequence: int
    sequences: int
    tokens: int
    padded: int  # ids of padding, fully masked rows at the end of the source included
    discarded: int  # ids that no row holds
    split: int  # documents that stand in several rows
    documents: int
    shuffle: ShuffleQuality  # of its sequences in training order, fully masked rows left out

    @property
    def end_sequence(self) -> int:
        return self.first_sequence + self.sequences

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Window:
        raw = json.loads(data)
        shuffle = ShuffleQuality.from_dict(raw["shuffle"])
        return cls(**{**raw, "first": tuple(raw["first"]), "after": tuple(raw["after"]), "shuffle": shuffle})


class Bound(NamedTuple):
    """A border between two windows: number, first sequence and first chunk of the one behind it."""

    window: int
    sequence: int
    at: At

    @property
    def name(self) -> str:
        return f"{self.window:09d}-{self.sequence:012d}-{self.at[0]:010d}-{self.at[1]:05d}"

    @classmethod
    def parse(cls, name: str) -> Bound:
        window, sequence, position, chunk = map(int, name.split("-"))
        return cls(window, sequence, (position, chunk))


class WindowPage(NamedTuple):
    """A page by its name."""

    path: str
    begin: Bound
    end: Bound


class WindowLog:
    """Closed pack windows of one source under one packing fingerprint; created once, in order, by one writer.

    What it knows of the store is listed once, at the first use. It holds at most two pages of single windows; pages are
    held by the process, at most CACHED_PAGES.
    """

    def __init__(self, root: Store) -> None:
        self.root = root
        self._count: int | None = None
        self._single: dict[int, Window] = {}

    def __len__(self) -> int:
        """Windows of the contiguous prefix; two LISTs at the first call."""
        if self._count is None:
            newest = f"{self._paged - 1:09d}.json" if self._paged else ""
            self._count = self._paged
            for path, _size, _version in self.root.list("windows", after=newest):
                if path != single_path(self._count):
                    break
                self._count += 1
        return self._count

    def write(self, window: Window) -> None:
        """Create the next window, and the pages that have become full."""
        self.root.create(single_path(window.window), window.to_bytes())
        self._count = max(len(self), window.window + 1)
        self._hold(window)
        self.write_pages()

    def write_pages(self) -> None:
        """Create every page whose windows are all there: none but after a crash, or when the last window is new."""
        while len(self) - self._paged >= pages.PAGE_CHUNKS:
            self._write_page(range(self._paged, self._paged + pages.PAGE_CHUNKS))

    def get(self, number: int) -> Window:
        """One window."""
        if number < self._paged:
            page = self._pages[bisect_right(self._pages, number, key=lambda page: page.end.window)]
            return _read_page(self.root, page.path)[number - page.begin.window]
        if number not in self._single:
            self._hold(Window.from_bytes(self.root.read(single_path(number))))
        return self._single[number]

    def newest(self) -> Window | None:
        """The window closed last."""
        return self.get(len(self) - 1) if len(self) else None

    def of_sequence(self, sequence: int) -> Window | None:
        """The window that holds a sequence, if it is closed."""
        return self._first_beyond(sequence, lambda page: page.end.sequence, lambda window: window.end_sequence)

    def of_chunk(self, at: At) -> Window | None:
        """The window that holds a chunk, if it is closed."""
        return self._first_beyond(at, lambda page: page.end.at, lambda window: window.after)

    def read_all(self) -> list[Window]:
        """The contiguous prefix of closed windows."""
        singles = [single_path(number) for number in range(self._paged, len(self))]
        paged = [window for page in self._pages for window in _parse_page(self.root.read(page.path))]
        return paged + [Window.from_bytes(data) for data in read_many(self.root, singles)]

    @property
    def _paged(self) -> int:
        """Windows in pages."""
        return self._pages[-1].end.window if self._pages else 0

    @cached_property
    def _pages(self) -> list[WindowPage]:
        """The pages there are, without a gap from the first window on."""
        found: list[WindowPage] = []
        for path, _size, _version in self.root.list("window_pages"):
            begin, end = path.rsplit("/", 1)[-1].partition(".")[0].split("_")
            page = WindowPage(path, Bound.parse(begin), Bound.parse(end))
            if page.begin.window == (found[-1].end.window if found else 0):
                found.append(page)
        return found

    def _first_beyond(
        self, value: Any, of_page: Callable[[WindowPage], Any], of_window: Callable[[Window], Any]
    ) -> Window | None:
        """The first window that ends beyond the value; the page is found by name."""
        numbers = range(self._paged, len(self))
        page = bisect_right(self._pages, value, key=of_page)
        if page < len(self._pages):
            numbers = range(self._pages[page].begin.window, self._pages[page].end.window)
        index = bisect_right(numbers, value, key=lambda number: of_window(self.get(number)))
        return self.get(numbers[index]) if index < len(numbers) else None

    def _write_page(self, numbers: range) -> None:
        missing = [number for number in numbers if number not in self._single]
        read = map(Window.from_bytes, read_many(self.root, list(map(single_path, missing))))
        known = self._single | dict(zip(missing, read, strict=True))
        windows = [known[number] for number in numbers]
        begin = Bound(numbers.start, windows[0].first_sequence, windows[0].first)
        end = Bound(numbers.stop, windows[-1].end_sequence, windows[-1].after)
        path = f"window_pages/{begin.name}_{end.name}.jsonl"
        self.root.create(path, b"".join(window.to_bytes() + b"\n" for window in windows))
        self._pages.append(WindowPage(path, begin, end))

    def _hold(self, window: Window) -> None:
        self._single[window.window] = window
        if len(self._single) > 2 * pages.PAGE_CHUNKS:
            del self._single[next(iter(self._single))]


def single_path(number: int) -> str:
    return f"windows/{number:09d}.json"


def _parse_page(data: bytes) -> list[Window]:
    return [Window.from_bytes(line) for line in data.splitlines()]


@lru_cache(maxsize=pages.CACHED_PAGES)
def _read_page(root: Store, path: str) -> list[Window]:
    return _parse_page(root.read(path))
