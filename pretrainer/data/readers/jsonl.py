"""Reader of JSON lines."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Generator, Iterator
from functools import partial
from itertools import chain
from typing import NamedTuple

from pretrainer.data.readers.decompress import CorruptStreamError
from pretrainer.data.readers.reading import (
    NEWLINE,
    Reading,
    Record,
    document_id,
    has_surrogate,
    number,
    plain_text,
)
from pretrainer.storage import RetryingFile

TAIL_BLOCK_BYTES = 65_536
"""Block size behind the end of a byte range, where only the rest of one line is wanted."""


class Line(NamedTuple):
    """One line: offset of its first byte, size with its line end, and the bytes without it (None if too long)."""

    start: int
    size: int
    data: bytes | None


class _OpenLine:
    """The line that is being collected; bytes beyond the limit are counted and dropped."""

    def __init__(self, start: int, max_bytes: int) -> None:
        self.start, self.max_bytes, self.size, self.parts = start, max_bytes, 0, list[bytes]()

    def add(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self.max_bytes + len(NEWLINE):
            self.parts.clear()
        else:
            self.parts.append(data)

    def close(self, has_newline: bool) -> Line:
        fits = self.size - has_newline <= self.max_bytes
        return Line(self.start, self.size, b"".join(self.parts).removesuffix(NEWLINE) if fits else None)


def split_lines(blocks: Iterator[bytes], offset: int, end: float, max_bytes: int, skip_first: bool) -> Iterator[Line]:
    """Lines that start before `end`, from blocks that begin at `offset`; the first, a rest of a line, may be skipped.

    Blocks are asked for only as long as an owned line is open.
    """
    line, skipping = _OpenLine(offset, max_bytes), skip_first
    for block in blocks:
        begin = 0
        while (newline := block.find(NEWLINE, begin)) >= 0:
            line.add(block[begin : newline + 1])
            if not skipping:
                yield line.close(has_newline=True)
            line, skipping, begin = _OpenLine(line.start + line.size, max_bytes), False, newline + 1
            if line.start >= end:
                return
        line.add(block[begin:])
        if skipping and line.start + line.size >= end:
            return
    if line.size and not skipping:
        yield line.close(has_newline=False)


def read_jsonl(reading: Reading) -> Generator[Record, None, int]:
    """One JSON object per line; blank lines are no records.

    Rows are byte offsets in an uncompressed shard and line numbers, from 0, in a compressed one.
    """
    with reading.open() as file:
        if reading.compression is None:
            return (yield from _plain_jsonl(reading, file))
        return (yield from _compressed_jsonl(reading, file))


def _plain_jsonl(reading: Reading, file: RetryingFile) -> Generator[Record, None, int]:
    start, end = reading.piece.start, file.size if reading.is_whole else reading.piece.end or 0
    first = max(0, start - 1) + reading.resume.offset  # the byte before tells whether a line starts at `start`
    tail = file.blocks(end, None, min(TAIL_BLOCK_BYTES, reading.block_bytes))
    blocks = chain(file.blocks(first, end, reading.block_bytes), tail)
    for line in split_lines(blocks, first, end, reading.max_document_bytes, skip_first=start > 0):
        yield from _parse_line(reading, line, line.start - start, line.start)
    return end - start


def _compressed_jsonl(reading: Reading, file: RetryingFile) -> Generator[Record, None, int]:
    row, position = reading.resume.row, reading.resume.offset
    blocks = reading.decompressed(file)
    try:
        for line in split_lines(blocks, position, math.inf, reading.max_document_bytes, skip_first=False):
            yield from _parse_line(reading, line, line.start, row)
            position, row = line.start + line.size, row + 1
    except CorruptStreamError as error:
        yield reading.refused(position, 0, row, "corrupt_shard", f"from decompressed byte {position:,} on: {error}")
    return position


def _parse_line(reading: Reading, line: Line, start: int, row: int) -> Iterator[Record]:
    """No record for a blank line, else one."""
    if line.data is None:
        limit = reading.max_document_bytes
        yield reading.refused(start, line.size, row, "too_long", f"a line of {line.size:,} bytes, at most {limit:,}")
        return
    data = line.data.removeprefix(codecs.BOM_UTF8) if line.start == 0 else line.data
    if data and not data.isspace():
        raw = reading.document(start, row, data, line.size)
        yield raw if raw.text is None else _from_json(reading, raw, start)


def _from_json(reading: Reading, raw: Record, start: int) -> Record:
    """The record with the text and id of the JSON object that its text is."""
    assert raw.text is not None
    refused = partial(reading.refused, start, raw.size, raw.row)
    try:
        value = json.loads(raw.text)
    except (ValueError, RecursionError) as error:
        return refused("bad_json", str(error))
    if not isinstance(value, dict):
        return refused("not_an_object", f"the line is a JSON {type(value).__name__}")
    if reading.source.text_column not in value:
        there = ", ".join(map(ascii, sorted(value)[:8]))
        return refused("missing_column", f"no {reading.source.text_column!r}, there are {there}")
    text = value[reading.source.text_column]
    if not isinstance(text, str):
        return refused("null_text", "the text is null") if text is None else refused(
            "text_not_string", f"the text is a JSON {type(text).__name__}")
    if not text.isascii() and has_surrogate(text):
        return refused("invalid_utf8", "a lone surrogate in a JSON string")
    source = reading.source
    return raw._replace(
        text=text,
        id=document_id(value.get(source.id_column or ""), raw.id or ""),
        url=plain_text(value.get(source.url_column or "")),
        language=plain_text(value.get(source.language_column or "")),
        scores=tuple(number(value.get(column)) for column in source.score_columns),
    )
