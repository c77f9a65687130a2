"""WARC and WET: what is a document, charsets and encodings, limits and damage."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from pathlib import Path

import brotli
import pytest

from pretrainer.data.readers.units import shard_format
from tests.data.compress import COMPRESS, zstd
from tests.data.warc_records import (
    INFO,
    METADATA,
    REQUEST,
    REVISIT,
    chunks,
    pieces_of,
    read,
    record,
    response,
    wet,
)


def letters(report: dict) -> list[tuple[int, str]]:
    return [(letter["row"], letter["reason"]) for letter in report["dead_letters"]]


# --------------------------------------------------------------------------------------------------- what is what


def test_documents_ids_urls_and_rows(tmp_path: Path) -> None:
    page = b"<html><body><p>A page about something, and long enough to be its text.</p></body></html>"
    data = [INFO, REQUEST, response(page, "text/html; charset=utf-8", WARC_Target_URI="<http://b.org/x?y=1>"), METADATA,
            response(b"plain"), wet("extracted before"), wet("no id", WARC_Record_ID="")]  # fmt: skip
    docs, report = read(tmp_path, b"".join(data))
    assert [(doc["row"], doc["url"], doc["text"]) for doc in docs] == [
        (2, "http://b.org/x?y=1", "A page about something, and long enough to be its text."),
        (4, "http://a.org/", "plain"), (5, "http://a.org/", "extracted before"), (6, "http://a.org/", "no id"),
    ]  # fmt: skip
    assert docs[0]["id"].startswith("<urn:uuid:") and docs[3]["id"] == "a.warc#6"
    assert report["read"] == 4 and not report["dropped"] and not report["dead_letters"]
    assert report["bytes_read"] == sum(map(len, (data[2], *data[4:])))


@pytest.mark.parametrize(("data", "reason"), [
    (REVISIT, "warc_revisit"),
    (response(b"x", status="404 Not Found"), "warc_http_status"),
    (response(b"x", status="301 Moved", http="Location: /\r\n"), "warc_http_status"),
    (response(b"x", status="206 Partial"), "warc_http_status"),
    (response(b"x", status="abc"), "warc_http_status"),
    (record("response", b"no http at all", Content_Type="application/http"), "warc_http_status"),
    (record("response", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 9000, Content_Type="application/http"),
     "warc_http_status"),
    (response(b"\x89PNG", "image/png"), "warc_content_type"),
    (response(b"{}", "application/json"), "warc_content_type"),
    (response(b"x", ""), "warc_content_type"),
    (response(b"%PDF", "text/html", WARC_Identified_Payload_Type="application/pdf"), "warc_content_type"),
    (response(b"<svg>", "image/svg+xml", WARC_Identified_Payload_Type="text/html"), "warc_content_type"),
    (record("response", b"a.org. 1 IN A 1.2.3.4", Content_Type="text/dns"), "warc_content_type"),
    (wet("{}", Content_Type="application/json"), "warc_content_type"),
    (record("resource", b"x", Content_Type="text/plain"), "warc_record_type"),
    (record("continuation", b"x"), "warc_record_type"),
    (record("surprise", b"x"), "warc_record_type"),
    (response(b" \n "), "extraction_empty"),
    (response(b"", "text/html"), "extraction_empty"),
    (response(b"<html><script>var x</script></html>", "text/html"), "extraction_empty"),
])  # fmt: skip
def test_each_counted_drop(data: bytes, reason: str, tmp_path: Path) -> None:
    docs, report = read(tmp_path, wet("before") + data + wet("after"), limit=10**6)
    assert [doc["text"] for doc in docs] == ["before", "after"] and [doc["row"] for doc in docs] == [0, 2]
    assert report["dropped"] == {reason: 1} and not report["dead_letters"]


@pytest.mark.parametrize(("mime", "identified"), [
    ("TEXT/PLAIN; charset=x", ""), ("", "text/plain"), ("text/plain", "text/plain"), ("text/html", "text/plain"),
])  # fmt: skip
def test_content_types_that_are_text(mime: str, identified: str, tmp_path: Path) -> None:
    docs, _ = read(tmp_path, response(b"<b>", mime, WARC_Identified_Payload_Type=identified))
    assert [doc["text"] for doc in docs] == ["<b>"]


@pytest.mark.parametrize(("name", "expected"), [
    ("a.warc", ("warc", None)), ("a.warc.gz", ("warc", "gzip")), ("CC-MAIN-2-0001.warc.wet.gz", ("warc", "gzip")),
    ("a.wet.gz", ("warc", "gzip")), ("a.warc.zst", ("warc", "zstd")), ("a.warc.lz4", ("warc", "lz4")),
    ("a.html", ("html", None)), ("a.HTM.gz", ("html", "gzip")), ("de-20240101-pages-articles.xml.bz2",
    ("wikipedia", "bz2")), ("en-pages-articles-multistream1.xml-p1p41242.bz2", ("wikipedia", "bz2")),
    ("a.xml", ("text", None)), ("my-pages-articles.txt", ("text", None)),
])  # fmt: skip
def test_names_that_auto_knows(name: str, expected: tuple[str, str | None]) -> None:
    assert shard_format(name, "auto") == expected


# ------------------------------------------------------------------------------------------- charsets and encodings


@pytest.mark.parametrize(("body", "charset", "text"), [
    ("Größe".encode("latin-1"), "iso-8859-1", "Größe"),
    ("Größe".encode(), "iso-8859-1", "Größe"),  # the header is wrong
    ("Привет мир".encode("cp1251"), "windows-1251", "Привет мир"),
    ("Привет, как дела сегодня".encode("koi8-r"), "", "Привет, как дела сегодня"),
    ("\ufeffgrün".encode("utf-16"), "", "grün"),
    ("日本語".encode("iso2022_jp"), "iso-2022-jp", "日本語"),
    ("naïve “x”".encode("cp1252"), "no-such-charset", "naïve “x”"),
    ("cut off €".encode()[:-1], "utf-8", "cut off "),
])  # fmt: skip
def test_charsets(body: bytes, charset: str, text: str, tmp_path: Path) -> None:
    mime = f"text/plain; charset={charset}" if charset else "text/plain"
    docs, _ = read(tmp_path, response(body, mime))
    assert docs[0]["text"].removeprefix("\ufeff") == text


def _chunked(body: bytes) -> bytes:
    return b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"


BODY = b"some text that was sent packed " * 9


@pytest.mark.parametrize(("http", "body"), [
    ("Content-Encoding: gzip", gzip.compress(BODY, mtime=0)), ("Content-Encoding: deflate", zlib.compress(BODY)),
    ("Content-Encoding: deflate", zlib.compress(BODY)[2:-4]), ("Content-Encoding: br", brotli.compress(BODY)),
    ("Content-Encoding: zstd", zstd(BODY)), ("Transfer-Encoding: chunked", _chunked(BODY)),
    ("Transfer-Encoding: chunked\r\nContent-Encoding: gzip", _chunked(gzip.compress(BODY, mtime=0))),
    ("Content-Encoding: gzip", BODY), ("Content-Encoding: br", BODY), ("Content-Encoding: zstd", BODY),
    ("Transfer-Encoding: chunked", BODY), ("Content-Encoding: identity", BODY), ("Content-Encoding: what", BODY),
])  # fmt: skip
def test_encodings_of_http_are_undone_where_the_body_has_them(http: str, body: bytes, tmp_path: Path) -> None:
    docs, _ = read(tmp_path, response(body, http=f"{http}\r\n"))
    assert docs[0]["text"] == BODY.decode()


@pytest.mark.parametrize(("name", "pack"), [("gzip", gzip.compress), ("br", brotli.compress), ("zstd", zstd)])
def test_a_bomb_of_http_is_too_long_and_costs_no_memory(name: str, pack: object, tmp_path: Path) -> None:
    bomb = response(pack(bytes(30_000_000)), http=f"Content-Encoding: {name}\r\n")  # type: ignore[operator]
    tracemalloc.start()
    docs, report = read(tmp_path, bomb + wet("after"), limit=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert letters(report) == [(0, "too_long")] and [doc["text"] for doc in docs] == ["after"]
    assert peak < 4_000_000


# ----------------------------------------------------------------------------------------------- limits and damage


@pytest.mark.parametrize("make", [response, lambda body: wet(body.decode())])
def test_the_limit_is_exact(make: object, tmp_path: Path) -> None:
    data = make(b"x" * 50)  # type: ignore[operator]
    assert len(read(tmp_path, data, limit=50)[0]) == 1
    assert letters(read(tmp_path, data, limit=49)[1]) == [(0, "too_long")]


@pytest.mark.parametrize("make", [response, lambda body: record("resource", body)])
def test_a_giant_record_is_passed_without_loading_it(make: object, tmp_path: Path) -> None:
    data = wet("before") + make(bytes(40_000_000)) + wet("after")  # type: ignore[operator]
    pieces = pieces_of(tmp_path, {"a.warc.gz": gzip.compress(data, 1)})
    del data
    tracemalloc.start()
    ((docs, report, _),) = chunks(pieces, block_bytes=2**20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(doc["row"], doc["text"]) for doc in docs] == [(0, "before"), (2, "after")]
    assert letters(report) == [(1, "too_long")] or report["dropped"] == {"warc_record_type": 1}
    assert peak < 4_000_000


def test_text_that_is_no_utf8_in_wet(tmp_path: Path) -> None:
    _, report = read(tmp_path, record("conversion", b"\xff\xfe\x01", Content_Type="text/plain"))
    assert letters(report) == [(0, "invalid_utf8")]


GOOD = [wet("one"), INFO, response(b"two")]


@pytest.mark.parametrize(("rest", "says"), [
    (wet("three")[:-8], "ends after 1 of 5 bytes"),
    (record("resource", b"x" * 99)[:-50], "ends too soon"),
    (wet("three")[:30], "does not end within"),
    (b"garbage between records\r\n" + wet("three"), "no WARC record begins here"),
    (wet("three", Content_Length=""), "Content-Length ''"),
    (wet("three", Content_Length="-5"), "Content-Length '-5'"),
    (wet("three", Content_Length="5x"), "Content-Length '5x'"),
    (wet("three", Content_Length="9" * 30), "Content-Length"),
    (wet("three", Content_Length="4"), None),
    (wet("three", X="y" * 40_000), "does not end within 32,768 bytes"),
    (b"\0" * 100, "no WARC record begins here"),
    (b"WARC/1.0\r\n\r\n", "Content-Length ''"),
])  # fmt: skip
def test_damage_keeps_what_is_before_and_names_its_place(rest: bytes, says: str | None, tmp_path: Path) -> None:
    good = b"".join(GOOD)
    docs, report = read(tmp_path, good + rest)
    assert [doc["text"] for doc in docs][:2] == ["one", "two"]
    (letter,) = report["dead_letters"]
    assert (letter["shard"], letter["reason"]) == ("a.warc", "corrupt_shard")
    if says is not None:
        assert len(docs) == 2 and letter["row"] == 3
        assert f"from decompressed byte {len(good):,} on" in letter["detail"] and says in letter["detail"]
    else:  # one byte less than there is: the next record does not begin where it should
        assert docs[2]["text"] == "thre" and letter["row"] == 4


@pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\n\r\n", b"\r\n\r\n\r\n\r\n"])
def test_blank_lines_at_the_end_are_no_damage(end: bytes, tmp_path: Path) -> None:
    docs, report = read(tmp_path, b"\r\n" + b"".join(GOOD).removesuffix(b"\r\n\r\n") + end)
    assert len(docs) == 2 and not report["dead_letters"]


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".lz4"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_truncated_stream_keeps_whole_records(suffix: str, share: float, tmp_path: Path) -> None:
    parts = [wet(f"{i} " * 50) for i in range(200)]
    packed = b"".join(map(gzip.compress, parts)) if suffix == ".gz" else COMPRESS[suffix](b"".join(parts))
    docs, report = read(tmp_path, packed[: int(len(packed) * share)], f"a.warc{suffix}")
    assert [doc["text"] for doc in docs] == [f"{i} " * 50 for i in range(len(docs))]
    assert letters(report) == [(len(docs), "corrupt_shard")]
    assert len(docs) >= {".gz": int(200 * share) - 2}.get(suffix, 0)


def test_no_record_at_all(tmp_path: Path) -> None:
    assert read(tmp_path, b"")[1]["read"] == 0
    assert letters(read(tmp_path, b"", "a.warc.gz")[1]) == [(0, "corrupt_shard")]
