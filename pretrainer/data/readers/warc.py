"""Reader of WARC and WET (ISO 28500, as Common Crawl, Heritrix, wget and others write it).

Documents are `response` records with HTTP status 200 that hold HTML (its text by `extract`) or plain text, and
`conversion` records of plain text, as in WET. What else a crawl holds is counted and dropped:

| reason | meaning |
|---|---|
| warc_revisit | the crawler saw the same page before |
| warc_http_status | a response with another status than 200, or with none |
| warc_content_type | an image, a script, an answer of DNS … |
| warc_record_type | resource, continuation and unknown records |

Records about the crawl itself (warcinfo, request, metadata) are no documents and not counted, but they have a row.

Where a record begins and ends is decided here, what its headers say by fastwarc. Its own iterator is not used: it gives
a record that is cut off as if it were whole, takes a missing Content-Length for 0, unpacks a bomb of HTTP compression
into memory, and cannot begin at a place in the stream with the bytes and rows that `Resume` needs.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Generator

import pyarrow as pa
from fastwarc.stream_io import BrotliReader
from fastwarc.warc import HeaderMap, WarcRecord, WarcRecordType

from pretrainer.data.readers.charset import decode_page
from pretrainer.data.readers.extract import Page, extracted
from pretrainer.data.readers.reading import Reading, Record, document_id, plain_text
from pretrainer.data.readers.window import Window
from pretrainer.storage import RetryingFile

HEAD_BYTES = 32 * 1024
"""Longest header of a record, and of an HTTP response, that fastwarc reads."""
ABOUT_THE_CRAWL = (WarcRecordType.warcinfo, WarcRecordType.request, WarcRecordType.metadata)
HTML, PLAIN = ("text/html", "application/xhtml+xml"), ("text/plain",)


class _MalformedError(Exception):
    """No record can be read here, so the next one cannot be found; never leaves this module."""


def read_warc(reading: Reading) -> Generator[Record, None, int]:
    """Rows are numbers of records in the shard, from 0, of all kinds; the id is WARC-Record-ID."""
    with reading.open() as file:
        return (yield from extracted(reading, _records(reading, file)))


def _records(reading: Reading, file: RetryingFile) -> Generator[Record | Page, None, int]:
    window, row = Window(reading.content(file), reading.resume.offset), reading.resume.row
    window.skip_bytes_of(b"\r\n")
    while window.has(1):
        start = window.position
        try:
            item = _next_record(reading, window, row)
        except _MalformedError as error:
            reason = window.broken or error
            yield reading.refused(start, 0, row, "corrupt_shard", f"from decompressed byte {start:,} on: {reason}")
            return start
        if item is not None:
            yield item
        row += 1
    if window.broken is not None:
        detail = f"from decompressed byte {window.position:,} on: {window.broken}"
        yield reading.refused(window.position, 0, row, "corrupt_shard", detail)
    return window.position


def _next_record(reading: Reading, window: Window, row: int) -> Record | Page | None:
    """Moves the window behind a record and the blank lines that end it; None for a record about the crawl."""
    start = window.position
    head, warc, length = _head(window)
    end = window.position + length
    item: Record | Page | None
    if warc.record_type == WarcRecordType.response:
        item = _response(reading, window, row, (start, end), head)
    elif warc.record_type == WarcRecordType.conversion:
        item = _conversion(reading, window, row, (start, end), warc.headers)
    elif warc.record_type in ABOUT_THE_CRAWL:
        item = None
    else:
        is_revisit = warc.record_type == WarcRecordType.revisit
        item = reading.dropped(start, 0, row, "warc_revisit" if is_revisit else "warc_record_type")
    if not window.skip(end - window.position):
        raise _MalformedError(f"a record of {length:,} bytes ends too soon")
    window.skip_bytes_of(b"\r\n")
    return item and _sized(item, window.position - start)


def _sized(item: Record | Page, size: int) -> Record | Page:
    return item._replace(record=item.record._replace(size=size)) if isinstance(item, Page) else item._replace(size=size)


def _head(window: Window) -> tuple[bytes, WarcRecord, int]:
    """(header of the next record, the same parsed, bytes of content); the window moves behind it."""
    if window.peek(5) != b"WARC/":
        raise _MalformedError("no WARC record begins here")
    size = window.find(b"\r\n\r\n", HEAD_BYTES)
    if size < 0:
        raise _MalformedError(f"the header of a record does not end within {HEAD_BYTES:,} bytes")
    head = window.take(size + 4)
    try:
        warc = WarcRecord.from_bytes(head)
    except OSError as error:
        raise _MalformedError(str(error)) from None
    length = warc.headers.get("Content-Length") or ""
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        raise _MalformedError(f"a record with Content-Length {length!r}")
    return head, warc, int(length)


def _conversion(
    reading: Reading, window: Window, row: int, place: tuple[int, int], headers: HeaderMap
) -> Record | None:
    start, end = place
    if _mime(headers.get("Content-Type")) not in PLAIN:
        return reading.dropped(start, 0, row, "warc_content_type")
    size = end - window.position
    if size > reading.max_document_bytes:
        return _too_long(reading, start, row, size)
    return _named(reading.document(start, row, _content(window, size)), headers)


def _response(reading: Reading, window: Window, row: int, place: tuple[int, int], head: bytes) -> Record | Page:
    start, end = place
    # fastwarc needs only the beginning of the content for the HTTP header, so that a film is not read for it.
    peeked = window.peek(min(end - window.position, HEAD_BYTES))
    warc = WarcRecord.from_bytes(head + peeked)
    if not warc.is_http:
        return reading.dropped(start, 0, row, "warc_content_type")
    if not _is_parsed(warc) or warc.http_headers.status_code != 200:
        return reading.dropped(start, 0, row, "warc_http_status")
    kind = _kind(warc)
    if kind not in HTML + PLAIN:
        return reading.dropped(start, 0, row, "warc_content_type")
    header_bytes = len(peeked) - len(warc.reader.read())
    size = end - window.position - header_bytes
    if size > reading.max_document_bytes:
        return _too_long(reading, start, row, size)
    body = _decoded(_content(window, end - window.position)[header_bytes:], warc.http_headers, reading)
    if len(body) > reading.max_document_bytes:
        return _too_long(reading, start, row, len(body))
    text = decode_page(body, warc.http_charset)
    record = _named(Record(reading.base + start, 0, row, reading.default_id(row), None), warc.headers)
    if kind in HTML:
        return Page(record, text.encode())
    return record._replace(text=text) if text.strip() else reading.dropped(start, 0, row, "extraction_empty")


def _is_parsed(warc: WarcRecord) -> bool:
    """Whether the content begins with the header of an HTTP response."""
    try:
        warc.parse_http(quirks_mode=True)
    except OSError:
        return False
    return warc.is_http_parsed


def _kind(warc: WarcRecord) -> str:
    """MIME type of a response: as the crawler found it, unless the server says that it is nothing of the kind."""
    said, found = _mime(warc.http_content_type), _mime(warc.headers.get("WARC-Identified-Payload-Type"))
    if said and said not in HTML + PLAIN:
        return said
    return found or said


def _mime(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def _content(window: Window, size: int) -> bytes:
    data = window.take(size)
    if len(data) < size:
        raise _MalformedError(f"a record ends after {len(data):,} of {size:,} bytes")
    return data


def _named(record: Record, headers: HeaderMap) -> Record:
    """With the id and address of the WARC header; a dead letter stays as it is."""
    if record.reason:
        return record
    url = plain_text(headers.get("WARC-Target-URI") or "").removeprefix("<").removesuffix(">")
    return record._replace(id=document_id(headers.get("WARC-Record-ID"), record.id or ""), url=url)


def _too_long(reading: Reading, start: int, row: int, size: int) -> Record:
    return reading.refused(start, 0, row, "too_long", f"{size:,} bytes, at most {reading.max_document_bytes:,}")


# ------------------------------------------------------------------------------------------ HTTP's own encodings


def _decoded(body: bytes, headers: HeaderMap, reading: Reading) -> bytes:
    """Without the encodings that the header names, at most a byte more than a document may have.

    As it is where they cannot be undone: many crawlers, Common Crawl among them, store bodies decoded.
    """
    if "chunked" in (headers.get("Transfer-Encoding") or "").lower():
        body = _joined_chunks(body)
    for name in reversed((headers.get("Content-Encoding") or "").lower().split(",")):
        decoder = DECODERS.get(name.strip())
        body = decoder(body, reading.max_document_bytes + 1) if decoder else body
    return body


def _joined_chunks(body: bytes) -> bytes:
    """RFC 9112, section 7.1; what is there of a body that is cut off."""
    parts, position = list[bytes](), 0
    while position < len(body):
        line_end = body.find(b"\r\n", position, position + 1024)
        try:
            size = int(body[position : max(line_end, position)].partition(b";")[0], 16)
        except ValueError:
            return b"".join(parts) if parts else body
        if size <= 0:
            break
        parts.append(body[line_end + 2 : line_end + 2 + size])
        position = line_end + 2 + size + 2
    return b"".join(parts)


def _inflated(body: bytes, limit: int) -> bytes:
    for window_bits in (47, -15):  # gzip or zlib by their header; then deflate without one, as some servers send it
        try:
            return zlib.decompressobj(window_bits).decompress(body, limit)
        except zlib.error:
            continue
    return body


def _unbrotlied(body: bytes, limit: int) -> bytes:
    reader, found = BrotliReader(io.BytesIO(body)), bytearray()
    try:
        while len(found) < limit and (part := reader.read(limit - len(found))):
            found += part
    except OSError:
        return bytes(found) or body
    return bytes(found)


def _unzstded(body: bytes, limit: int) -> bytes:
    try:
        return pa.CompressedInputStream(pa.BufferReader(body), "zstd").read(limit)
    except OSError:
        return body


DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _inflated,
    "x-gzip": _inflated,
    "deflate": _inflated,
    "br": _unbrotlied,
    "zstd": _unzstded,
}
"""Content-Encoding -> (body, most bytes) -> body."""
