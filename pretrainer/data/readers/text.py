"""Reader of plain text files."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from pretrainer.data.readers.decompress import CorruptStreamError
from pretrainer.data.readers.reading import NEWLINE, Reading, Record
from pretrainer.storage import RetryingFile

CUT_SEARCH_BYTES = 65_536
"""A large text file is cut after the last line end within so many bytes below a chunk border."""


def read_text(reading: Reading) -> Generator[Record, None, int]:
    """One document per file; a file larger than `chunk_bytes` is cut near each multiple of it, see `cut`.

    The k-th document counts as starting at k * chunk_bytes, so each chunk has one. Rows are byte offsets in an
    uncompressed shard and document numbers, from 0, in a compressed one. An empty file has no document.
    """
    with reading.open() as file:
        if reading.compression is None:
            return (yield from _plain_text(reading, file))
        return (yield from _compressed_text(reading, file))


def cut(data: bytes | bytearray, boundary: int, chunk_bytes: int) -> int:
    """Where text is cut near `boundary` (0 < boundary < len(data)): an index in (boundary - search, boundary].

    It is behind the last line end of the CUT_SEARCH_BYTES (at most chunk_bytes) in front of the boundary, or, if
    there is none, in front of the character that holds the byte at the boundary.
    """
    low = max(0, boundary - min(chunk_bytes, CUT_SEARCH_BYTES))
    newline = data.rfind(NEWLINE, low, boundary)
    if newline >= 0:
        return newline + 1
    starts = (i for i in range(boundary, max(low, boundary - 4), -1) if data[i] & 0xC0 != 0x80)
    return next(starts, boundary)


def _plain_text(reading: Reading, file: RetryingFile) -> Generator[Record, None, int]:
    start, end = reading.piece.start, file.size if reading.is_whole else reading.piece.end or 0
    first = max(0, start - CUT_SEARCH_BYTES)
    data = b"".join(file.blocks(first, min(end + 1, file.size), reading.block_bytes))
    begin = cut(data, start - first, reading.chunk_bytes) if start else 0
    stop = cut(data, end - first, reading.chunk_bytes) if end < file.size else end - first
    if stop > begin:
        yield _text_document(reading, 0, first + begin, data[begin:stop])
    return end - start


def _text_document(reading: Reading, start: int, row: int, data: bytes) -> Record:
    record = reading.document(start, row, data)
    return record._replace(text=record.text.removeprefix("\ufeff")) if record.text and row == 0 else record


def _compressed_text(reading: Reading, file: RetryingFile) -> Generator[Record, None, int]:
    row, size = reading.resume.row, reading.resume.offset
    try:
        for data in cut_documents(reading.decompressed(file), reading.chunk_bytes, row, size):
            yield _text_document(reading, row * reading.chunk_bytes, row, data)._replace(offset=size)
            size, row = size + len(data), row + 1
    except CorruptStreamError as error:
        detail = f"from decompressed byte {size:,} on: {error}"
        yield reading.refused(row * reading.chunk_bytes, 0, row, "corrupt_shard", detail)._replace(offset=size)
        return row * reading.chunk_bytes
    return size


def cut_documents(blocks: Iterator[bytes], chunk_bytes: int, first: int = 0, offset: int = 0) -> Iterator[bytes]:
    """The documents of one text file from number `first` on, as `cut` makes them; `blocks` begin at byte `offset`."""
    buffer, boundary = bytearray(), (first + 1) * chunk_bytes  # buffer[0] is byte `offset` of the file
    for block in blocks:
        buffer += block
        while len(buffer) + offset > boundary:
            stop = cut(buffer, boundary - offset, chunk_bytes)
            yield bytes(buffer[:stop])
            del buffer[:stop]
            offset, boundary = offset + stop, boundary + chunk_bytes
    if buffer:
        yield bytes(buffer)
