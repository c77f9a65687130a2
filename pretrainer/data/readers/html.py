"""Reader of HTML files."""

from __future__ import annotations

from collections.abc import Generator

from pretrainer.data.readers.charset import decode_page
from pretrainer.data.readers.extract import Page, extracted
from pretrainer.data.readers.reading import Reading, Record
from pretrainer.data.readers.window import Window
from pretrainer.storage import RetryingFile


def read_html(reading: Reading) -> Generator[Record, None, int]:
    """One page per file, row 0; the text is what `extract` finds in it."""
    with reading.open() as file:
        return (yield from extracted(reading, _page(reading, file)))


def _page(reading: Reading, file: RetryingFile) -> Generator[Record | Page, None, int]:
    window, limit = Window(reading.content(file), 0), reading.max_document_bytes
    if window.has(limit + 1):
        window.skip(2**62)
        size = window.position
        yield reading.refused(0, size, 0, "too_long", f"{size:,} bytes, at most {limit:,}")
        return size
    data = window.take(limit + 1)
    if window.broken is not None:
        detail = f"from decompressed byte {len(data):,} on: {window.broken}"
        yield reading.refused(0, len(data), 0, "corrupt_shard", detail)
    else:
        yield Page(Record(reading.base, len(data), 0, reading.default_id(0), None), decode_page(data).encode())
    return len(data)
