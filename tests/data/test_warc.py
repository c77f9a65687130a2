"""The WARC reader against a writer of the tests' own: what is a document, what is counted, damage, borders, resume."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import ExtractConfig, SourceConfig
from pretrainer.data.readers import extract
from pretrainer.data.readers.decompress import CorruptStreamError
from pretrainer.data.readers.extract import BATCH_PAGES, Verdict
from pretrainer.data.readers.formats import read_unit
from pretrainer.data.readers.reading import BEGINNING, Reading, Resume
from pretrainer.data.readers.units import Piece, shard_format
from pretrainer.data.readers.warc import read_warc
from pretrainer.data.readers.window import Window
from pretrainer.storage import RetryingFile
from tests.data.compress import COMPRESS, zstd

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
    ("Content-Encoding: gzip", gzip.compress(BODY)), ("Content-Encoding: deflate", zlib.compress(BODY)),
    ("Content-Encoding: deflate", zlib.compress(BODY)[2:-4]), ("Content-Encoding: br", brotli.compress(BODY)),
    ("Content-Encoding: zstd", zstd(BODY)), ("Transfer-Encoding: chunked", _chunked(BODY)),
    ("Transfer-Encoding: chunked\r\nContent-Encoding: gzip", _chunked(gzip.compress(BODY))),
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


# --------------------------------------------------------------------------------------------- borders and resume


def mixture(count: int) -> list[bytes]:
    """Records of every kind, also such that cover several chunks."""
    kinds = [INFO, REQUEST, REVISIT, METADATA, response(b"x", status="404 No"), response(b"GIF", "image/gif"),
             response(b"z" * (LIMIT + 1))]  # fmt: skip
    texts = (wet(f"{i} " * (i % 40), WARC_Record_ID=f"<urn:{i}>") for i in range(count))
    pages = (response(b"page %d " % i * (i % 90 + 1)) for i in range(count))
    return [part for i, pair in enumerate(zip(texts, pages, strict=True)) for part in (*pair, kinds[i % len(kinds)])]


def shard(suffix: str, records: list[bytes], is_one: bool = False) -> bytes:
    """With a member per record, as WARC has it, where the compression knows members."""
    if is_one or not suffix:
        return COMPRESS[suffix](b"".join(records))
    return b"".join(map(COMPRESS[suffix], records))


@pytest.mark.parametrize("suffix", list(COMPRESS))
@pytest.mark.parametrize("is_one", [True, False])
def test_chunks_depend_on_content_alone(suffix: str, is_one: bool, tmp_path: Path) -> None:
    """Neither on the size of blocks nor on the compression: those of the uncompressed twin."""
    records = mixture(40)
    twin = chunks(pieces_of(tmp_path, {"a.warc": b"".join(records)}), 1500)
    pieces = pieces_of(tmp_path, {f"a.warc{suffix}": shard(suffix, records, is_one)})
    for block_bytes in (61, 5000, 2**20):
        found = chunks(pieces, 1500, block_bytes)
        assert [[doc["text"] for doc in docs] for docs, *_ in found] == [[d["text"] for d in docs] for docs, *_ in twin]
        assert [report["dropped"] for _, report, _ in found] == [report["dropped"] for _, report, _ in twin]
        assert found == chunks(pieces, 1500)
    assert len(twin) > 5


@pytest.mark.parametrize("kind", ["whole", "truncated", "garbage"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_every_cut(suffix: str, kind: str, tmp_path: Path) -> None:
    """For every cut, the chunks behind it are those of the whole read."""
    packed = shard(suffix, mixture(40))
    packed = {"truncated": packed[: len(packed) * 4 // 5], "garbage": packed + b"garbage"}.get(kind, packed)
    pieces = pieces_of(tmp_path, {"0.warc.gz": gzip.compress(wet("small")), f"a.warc{suffix}": packed})
    whole = chunks(pieces, 1500)
    assert len(whole) > 4 and whole[-1][1]["next"] is None
    for first in range(1, len(whole)):
        place = json.loads(json.dumps(whole[first - 1][1]["next"]))  # as the ledger keeps it
        assert chunks(pieces, 1500, first=first, resume=Resume(**place)) == whole[first:]


def test_html_in_batches_does_not_move_borders_or_resume(tmp_path: Path) -> None:
    """Pages are extracted ahead of the record that is given, across the ends of chunks."""
    pages = [response(f"<html><body><h1>T</h1><p>{f'word{i} ' * (20 + i % 9)}.</p></body></html>".encode(), "text/html")
             for i in range(90)]  # fmt: skip
    records = [part for page in pages for part in (REQUEST, page)]
    pieces = pieces_of(tmp_path, {"a.warc.gz": shard(".gz", records)})
    whole = chunks(pieces, 4000)
    assert sum(len(docs) for docs, *_ in whole) == 90 and len(whole) > 6
    assert "word89" in whole[-1][0][-1]["text"]
    for first in (1, len(whole) // 2, len(whole) - 1):
        assert chunks(pieces, 4000, first=first, resume=Resume(**whole[first - 1][1]["next"])) == whole[first:]


def test_reading_ahead_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the pages of a batch nor the starts of members grow with the shard."""
    records = [part for i in range(500) for part in (REQUEST, response(b"<p>page %d</p>" % i, "text/html"))]
    (piece,) = pieces_of(tmp_path, {"a.warc.gz": shard(".gz", records)})
    batches: list[int] = []

    def answer(pages: Sequence[bytes], config: ExtractConfig) -> list[Verdict]:
        batches.append(len(pages))
        return [Verdict("text")] * len(pages)

    monkeypatch.setattr(extract, "extract_pages", answer)
    reading = Reading(piece, SourceConfig(name="web", uris=("unused",)), 10**9, LIMIT, 1000, BEGINNING)
    starts = [len(reading.starts.passed) for _ in read_warc(reading)]
    assert len(starts) == sum(batches) == 500 and max(batches) == BATCH_PAGES
    assert max(starts) <= 3 * BATCH_PAGES


def test_a_seek_reads_from_the_member_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = pieces_of(tmp_path, {"a.warc.gz": shard(".gz", mixture(300))})
    whole = chunks(pieces, 4096)
    starts: list[int] = []
    blocks = RetryingFile.blocks

    def seen(self: RetryingFile, start: int = 0, *rest: object) -> Iterator[bytes]:
        starts.append(start)
        return blocks(self, start, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(RetryingFile, "blocks", seen)
    assert chunks(pieces, 4096, first=len(whole) - 1, resume=Resume(**whole[-2][1]["next"])) == whole[-1:]
    assert starts[0] > 0.9 * pieces[0].size


# ------------------------------------------------------------------------------------------------------ properties


@given(st.binary(max_size=40), st.integers(0, 400), st.integers(0, 3))
@settings(max_examples=120, deadline=None)
def test_any_damage_is_a_dead_letter_at_most(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int, kind: int
) -> None:
    """Bytes put into, written over or cut out of a shard never raise, and what is before them is kept."""
    good = wet("before")
    data = response(b"text", http="Content-Encoding: gzip\r\n") + wet("x")
    place = min(place, len(data))
    broken = [data[:place] + noise + data[place:], data[:place] + noise, noise,
              data[:place] + noise + data[place + len(noise) :]][kind]  # fmt: skip
    docs, report = read(tmp_path_factory.mktemp("d"), good + broken)
    assert docs[0]["text"] == "before"
    assert len(report["dead_letters"]) <= 2


_SOME = st.sampled_from([b"", b"a", b"b", b"ab", b"ba", b"aab", b"\0", b"abab"])


@given(st.lists(_SOME, max_size=9), st.integers(0, 20), st.integers(1, 12), _SOME)
@settings(max_examples=150, deadline=None)
def test_a_window_sees_the_bytes_whatever_the_pieces_are(
    pieces: list[bytes], skipped: int, count: int, wanted: bytes
) -> None:
    data = b"".join(pieces)
    assert Window(iter(pieces), 0).find(wanted, count) == data.find(wanted, 0, count)
    window = Window(iter(pieces), 7)
    assert window.skip(skipped) == (skipped <= len(data)) and window.position == 7 + min(skipped, len(data))
    rest = data[skipped:]
    assert window.has(count) == (len(rest) >= count)
    assert window.find(wanted, count) == rest.find(wanted, 0, count)
    assert window.peek(count) == rest[:count] == window.take(count)
    window.skip_bytes_of(b"\0")
    assert window.take(100) == rest[count:].lstrip(b"\0")


def test_a_window_over_a_broken_stream_ends_there() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"abc"
        raise CorruptStreamError("flipped")

    window = Window(pieces(), 0)
    assert window.take(9) == b"abc" and str(window.broken) == "flipped" and not window.has(1)
