"""WARC records and how the tests read them."""

from __future__ import annotations

import zlib
from dataclasses import asdict
from pathlib import Path

from pretrainer.config import SourceConfig
from pretrainer.data.readers.formats import read_unit
from pretrainer.data.readers.reading import BEGINNING, Resume
from pretrainer.data.readers.units import Piece

LIMIT = 4000
Chunk = tuple[list[dict], dict, bool]


def record(kind: str, body: bytes, **headers: str) -> bytes:
    """One WARC record; a header is named with _ for -, and left out where it is ""."""
    values = {"WARC-Type": kind, "WARC-Record-ID": f"<urn:uuid:{zlib.crc32(body)}>", "WARC-Target-URI": "http://a.org/",
              "Content-Length": str(len(body)), **{name.replace("_", "-"): text for name, text in headers.items()}}
    lines = "".join(f"{name}: {value}\r\n" for name, value in values.items() if value)
    return f"WARC/1.0\r\n{lines}\r\n".encode() + body + b"\r\n\r\n"


def response(body: bytes, mime: str = "text/plain", status: str = "200 OK", http: str = "", **headers: str) -> bytes:
    kind = f"Content-Type: {mime}\r\n" if mime else ""
    content = f"HTTP/1.1 {status}\r\n{kind}{http}\r\n".encode() + body
    return record("response", content, **{"Content_Type": "application/http; msgtype=response", **headers})


def wet(text: str, **headers: str) -> bytes:
    return record("conversion", text.encode(), **{"Content_Type": "text/plain", **headers})


INFO, REQUEST = record("warcinfo", b"software: test\r\n"), record("request", b"GET / HTTP/1.1\r\n\r\n")
METADATA, REVISIT = record("metadata", b"fetchTimeMs: 1"), record("revisit", b"", WARC_Profile="x")


def pieces_of(folder: Path, files: dict[str, bytes]) -> list[Piece]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [Piece(i, str(folder), name, len(data)) for i, (name, data) in enumerate(files.items())]


def chunks(
    pieces: list[Piece], chunk_bytes: int = 10**9, block_bytes: int = 1000, first: int = 0,
    resume: Resume = BEGINNING, limit: int = LIMIT,
) -> list[Chunk]:  # fmt: skip
    source = SourceConfig(name="web", uris=("unused",))
    found = read_unit(pieces, source, chunk_bytes, limit, block_bytes, first, resume)
    return [(docs.to_pylist(), asdict(report), last) for docs, report, last in found]


def read(folder: Path, data: bytes, name: str = "a.warc", limit: int = LIMIT) -> tuple[list[dict], dict]:
    """(documents, report) of one shard as one chunk."""
    ((docs, report, last),) = chunks(pieces_of(folder, {name: data}), limit=limit)
    assert last and report["read"] == len(docs) + len(report["dead_letters"]) + sum(report["dropped"].values())
    return docs, report
