"""Readers against straightforward references: whole-file reads, one case per dead letter, borders, S3 equals local."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer import storage
from pretrainer.config import SourceConfig
from pretrainer.data.readers.decompress import OUTPUT_BYTES, CorruptStreamError, decompressed
from pretrainer.data.readers.formats import READERS, read_unit
from pretrainer.data.readers.jsonl import split_lines
from pretrainer.data.readers.source import Manifest, UnitPlan
from pretrainer.data.readers.text import cut, cut_documents
from pretrainer.data.readers.units import Piece
from pretrainer.errors import SourceError, StorageError
from pretrainer.schema import DOCUMENTS, DeadLetter
from pretrainer.storage import Store
from tests import s3
from tests.data.compress import COMPRESS

s3_endpoint, s3_uri = s3.s3_endpoint, s3.s3_uri
LIMIT = 2**20


@dataclass
class Result:
    """Everything the units of a source gave, in order."""

    chunks: list[list[dict]]
    letters: list[DeadLetter]
    read: int
    bytes_read: int
    chunks_of_unit: list[int]

    @property
    def rows(self) -> list[dict]:
        return [row for chunk in self.chunks for row in chunk]

    @property
    def texts(self) -> list[str]:
        return [row["text"] for row in self.rows]

    @property
    def reasons(self) -> list[tuple[int, str]]:
        return [(letter.row, letter.reason) for letter in self.letters]


def read_all(
    root: str | Path, chunk_bytes: int = 4096, limit: int = LIMIT, block_bytes: int = 2**20, **fields: str
) -> Result:
    source = SourceConfig(name="web", uris=(str(root),), **fields)  # type: ignore[arg-type]
    plan = UnitPlan(Manifest.build([source]), 0, chunk_bytes)
    result = Result([], [], 0, 0, [])
    for unit in range(len(plan)):
        chunks = list(read_unit(plan.pieces(unit), source, chunk_bytes, limit, block_bytes))
        assert [last for _, _, last in chunks] == [False] * (len(chunks) - 1) + [True]
        for table, report, _ in chunks:
            assert table.schema == DOCUMENTS
            assert report.read == table.num_rows + len(report.dead_letters) + sum(report.dropped.values())
            result.chunks.append(table.to_pylist())
            result.letters += report.dead_letters
            result.read, result.bytes_read = result.read + report.read, result.bytes_read + report.bytes_read
        result.chunks_of_unit.append(len(chunks))
    return result


def put(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return folder


def jsonl(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


# ---------------------------------------------------------------------------------------------- JSON lines


def test_jsonl_ids_and_rows(tmp_path: Path) -> None:
    lines = jsonl({"text": "one"}, {"text": "zwölf", "key": "k2"}, {"text": "", "key": 3})
    result = read_all(put(tmp_path, "a.jsonl", lines), id_column="key")
    second, third = lines.index(b"\n") + 1, lines.rindex(b"\n", 0, -1) + 1
    assert [{name: row[name] for name in ("id", "shard", "row", "text")} for row in result.rows] == [
        {"id": "a.jsonl#0", "shard": 0, "row": 0, "text": "one"},
        {"id": "k2", "shard": 0, "row": second, "text": "zwölf"},
        {"id": "3", "shard": 0, "row": third, "text": ""},
    ]
    assert (result.read, result.bytes_read, result.letters) == (3, len(lines), [])


def test_jsonl_rows_of_a_compressed_shard_are_line_numbers(tmp_path: Path) -> None:
    data = b"\n" + jsonl({"text": "one"}, {"text": "two"}, 7)
    result = read_all(put(tmp_path, "a.jsonl.gz", gzip.compress(data)))
    assert [(row["id"], row["row"]) for row in result.rows] == [("a.jsonl.gz#1", 1), ("a.jsonl.gz#2", 2)]
    assert result.reasons == [(3, "not_an_object")]


@pytest.mark.parametrize(("line", "reason", "detail"), [
    (b'{"text": "x"', "bad_json", "delimiter"),
    (b"[" * 100_000, "bad_json", ""),
    (b"9" * 5000, "bad_json", "4300 digits"),
    (b'["text"]', "not_an_object", "list"),
    (b"null", "not_an_object", "NoneType"),
    (b'{"body": "x"}', "missing_column", "no 'text', there are 'body'"),
    (b'{"text": null}', "null_text", "null"),
    (b'{"text": 7}', "text_not_string", "int"),
    (b'{"text": "\xff"}', "invalid_utf8", "invalid start byte at byte 10"),
    (b'{"text": "\\ud800"}', "invalid_utf8", "surrogate"),
    (b'{"text": "' + b"x" * LIMIT + b'"}', "too_long", f"at most {LIMIT:,}"),
])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_each_reason_of_jsonl(line: bytes, reason: str, detail: str, suffix: str, tmp_path: Path) -> None:
    before, after = jsonl({"text": "before"}), jsonl({"text": "after"})
    data = before + line + b"\r\n" + after
    result = read_all(put(tmp_path, f"a.jsonl{suffix}", COMPRESS[suffix](data)))
    assert result.texts == ["before", "after"]
    letter, = result.letters
    assert (letter.source, letter.shard, letter.reason) == ("web", f"a.jsonl{suffix}", reason)
    assert letter.row == (1 if suffix else len(before))
    assert detail in letter.detail
    assert result.bytes_read == len(data)


def test_blank_lines_crlf_bom_and_no_newline_at_the_end(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n  \t\n\n{"text": "b"}'
    assert read_all(put(tmp_path, "a.jsonl", data)).texts == ["a", "b"]
    assert read_all(put(tmp_path, "a.jsonl", data)).read == 2


def test_limit_is_exact(tmp_path: Path) -> None:
    """A line of exactly the limit is read, one byte more is not, with and without a line end."""
    line = jsonl({"text": "x" * 50}).rstrip()
    for end in (b"", b"\n"):
        folder = put(tmp_path, "a.jsonl", line + end)
        assert len(read_all(folder, limit=len(line)).texts) == 1
        assert read_all(folder, limit=len(line) - 1).reasons == [(0, "too_long")]


def test_blocks_behind_a_range_are_asked_for_only_while_a_line_is_open() -> None:
    asked: list[int] = []

    def blocks(data: bytes) -> Iterator[bytes]:
        for i in range(len(data)):
            asked.append(i)
            yield data[i : i + 1]

    assert list(split_lines(blocks(b"x" * 50), 0, 10, LIMIT, skip_first=True)) == []
    assert asked == list(range(10))
    asked.clear()
    assert [line.data for line in split_lines(blocks(b"a\nbc\nd\ne"), 0, 3, LIMIT, skip_first=False)] == [b"a", b"bc"]
    assert asked == list(range(5))


_LINE = st.one_of(
    st.builds(lambda text: json.dumps({"text": text}).encode(), st.text(max_size=40)),
    st.builds(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode(), st.text("aé€😀\n", max_size=30)),
    st.sampled_from([b"", b"  ", b"{", b"[]", b'{"text": 1}', b'{"text": "\xff"}', b'{"text": "' + b"y" * 90 + b'"}']),
)


def _reference(data: bytes, limit: int) -> tuple[list[str], int]:
    """(texts, dead letters) of a whole JSONL file, in three lines."""
    lines = [line for line in data.split(b"\n") if line and not line.isspace()]
    texts: list[str] = []
    for line in lines:
        try:
            value = json.loads(line.decode()) if len(line) <= limit else None
        except ValueError:
            value = None
        if isinstance(value, dict) and isinstance(value.get("text"), str):
            texts.append(value["text"])
    return texts, len(lines) - len(texts)


_SUFFIX = st.sampled_from(list(COMPRESS))


@given(st.lists(_LINE, max_size=25), st.booleans(), st.integers(1, 200), st.integers(1, 80), _SUFFIX)
@settings(max_examples=150, deadline=None)
def test_every_line_is_read_once(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    newline: bool,
    chunk_bytes: int,
    block_bytes: int,
    suffix: str,
) -> None:
    """Whatever the chunks and blocks: the records of all units in order are those of the whole file."""
    data = b"\n".join(lines) + (b"\n" if newline else b"")
    folder = put(tmp_path_factory.mktemp("d"), f"a.jsonl{suffix}", COMPRESS[suffix](data))
    result = read_all(folder, chunk_bytes, limit=80, block_bytes=block_bytes)
    texts, dead = _reference(data, 80)
    assert result.texts == texts and len(result.letters) == dead
    keys = [row["row"] for row in result.rows] + [letter.row for letter in result.letters]
    assert len(set(keys)) == len(keys)


@given(st.lists(_LINE, max_size=25), st.integers(1, 200), st.sampled_from([".gz", ".zst", ".bz2", ".xz"]))
@settings(max_examples=60, deadline=None)
def test_chunks_of_a_compressed_shard_are_the_ranges_of_its_twin(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], chunk_bytes: int, suffix: str
) -> None:
    data = b"\n".join(lines)
    folder = tmp_path_factory.mktemp("d")
    plain = read_all(put(folder / "p", "a.jsonl", data), chunk_bytes)
    packed = read_all(put(folder / "c", f"a.jsonl{suffix}", COMPRESS[suffix](data)), chunk_bytes)
    chunks = [[row["text"] for row in chunk] for chunk in plain.chunks]
    found = [[row["text"] for row in chunk] for chunk in packed.chunks]
    assert found + [[]] * (len(chunks) - len(found)) == chunks
    assert plain.chunks_of_unit == [1] * len(plain.chunks)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.txt.gz"])
def test_borders_do_not_depend_on_block_size(name: str, tmp_path: Path) -> None:
    data = jsonl(*({"text": f"{i} " * (i % 37)} for i in range(300)))
    folder = put(tmp_path, name, COMPRESS[Path(name).suffix if name.count(".") == 2 else ""](data))
    results = [read_all(folder, 1000, block_bytes=size) for size in (13, 97, 4096, 2**20)]
    assert len(results[0].chunks) > 5
    assert all(result == results[0] for result in results)


def test_small_files_share_a_unit_and_a_chunk(tmp_path: Path) -> None:
    for i in range(10):
        put(tmp_path, f"{i}.jsonl", jsonl({"text": str(i)}))
    result = read_all(tmp_path, 64)
    assert result.texts == [str(i) for i in range(10)]
    assert [row["shard"] for row in result.rows] == list(range(10))
    assert 1 < len(result.chunks) < 10 and set(result.chunks_of_unit) == {1}


def test_two_compressed_shards_in_a_unit(tmp_path: Path) -> None:
    """Chunks go on across the shards of a unit: two shards of 40 lines of 15 bytes, chunks of 450."""
    for name in ("a", "b"):
        put(tmp_path, f"{name}.jsonl.gz", gzip.compress(jsonl({"text": f"{name}1"}, {"text": f"{name}2"}) * 20))
    pieces = [Piece(i, str(tmp_path), f"{name}.jsonl.gz", (tmp_path / f"{name}.jsonl.gz").stat().st_size)
              for i, name in enumerate("ab")]
    source = SourceConfig(name="web", uris=(str(tmp_path),))
    sizes = [table.num_rows for table, _, _ in read_unit(pieces, source, 450, LIMIT)]
    assert sizes == [30, 30, 20]


def test_an_empty_unit_has_one_chunk(tmp_path: Path) -> None:
    result = read_all(put(tmp_path, "a.jsonl", b""))
    assert result.chunks == [[]] and result.read == 0


# ------------------------------------------------------------------------------------------- corrupt streams


_DAMAGES = ["truncated", "flipped", "garbage", "not_compressed", "empty"]


# Arrow writes lz4 without checksums, so flipped bytes in it are other bytes and not an error.
@pytest.mark.parametrize(("suffix", "kind"), [
    (suffix, kind) for suffix in COMPRESS if suffix for kind in _DAMAGES if (suffix, kind) != (".lz4", "flipped")
])
def test_corrupt_stream_is_one_dead_letter(suffix: str, kind: str, tmp_path: Path) -> None:
    texts = [str(i) * 40 for i in range(20_000)]
    data = COMPRESS[suffix](jsonl(*({"text": text} for text in texts)))
    middle = len(data) * 9 // 10
    flipped = data[:middle] + bytes(byte ^ 0xFF for byte in data[middle : middle + 40]) + data[middle + 40 :]
    bad = {"truncated": data[:middle], "flipped": flipped, "garbage": data + b"garbage", "empty": b"",
           "not_compressed": b"plain text" * 9}[kind]
    result = read_all(put(tmp_path, f"a.jsonl{suffix}", bad), 100_000)
    last = result.letters[-1]
    assert last.reason == "corrupt_shard" and "from decompressed byte" in last.detail
    kept = result.texts
    if kind in ("truncated", "garbage", "flipped") and suffix in (".gz", ".zst", ".bz2"):
        assert len(kept) > (0 if kind == "flipped" else 10_000)
    if kind == "truncated":
        assert kept == texts[: len(kept)] and len(result.letters) == 1 and last.row == len(kept)
    assert all(read_all(tmp_path, 100_000, block_bytes=size) == result for size in (1000, 33_333))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".lz4", ".bz2", ".xz"])
def test_streams_may_be_joined_and_padded(suffix: str) -> None:
    one, two = b"first\n" * 1000, b"second\n" * 1000
    data = COMPRESS[suffix](one) + COMPRESS[suffix](two) + (b"" if suffix in (".zst", ".lz4") else b"\0" * 512)
    name = {".gz": "gzip", ".zst": "zstd", ".lz4": "lz4", ".bz2": "bz2", ".xz": "xz"}[suffix]
    for size in (1, 100, 10**6):
        blocks = (data[i : i + size] for i in range(0, len(data), size))
        assert b"".join(decompressed(blocks, name)) == one + two


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".lz4", ".bz2", ".xz"])
def test_bombs_come_in_small_pieces(suffix: str) -> None:
    name = {".gz": "gzip", ".zst": "zstd", ".lz4": "lz4", ".bz2": "bz2", ".xz": "xz"}[suffix]
    bomb = COMPRESS[suffix](bytes(20_000_000))
    sizes = [len(piece) for piece in decompressed(iter([bomb]), name)]
    assert sum(sizes) == 20_000_000 and max(sizes) <= OUTPUT_BYTES


def test_a_bomb_in_a_record_is_too_long(tmp_path: Path) -> None:
    data = jsonl({"text": "a"}) + b"x" * 30_000_000 + b"\n" + jsonl({"text": "b"})
    result = read_all(put(tmp_path, "a.jsonl.gz", gzip.compress(data)), 10**7, limit=10_000)
    assert result.texts == ["a", "b"] and result.reasons == [(1, "too_long")]


def test_a_stream_without_its_last_byte_is_corrupt() -> None:
    with pytest.raises(CorruptStreamError, match="ends too soon"):
        list(decompressed(iter([gzip.compress(b"abc")[:-1]]), "gzip"))


# ------------------------------------------------------------------------------------------------- plain text


def test_one_document_per_text_file(tmp_path: Path) -> None:
    put(tmp_path, "a.py", b"import os\r\n")
    put(tmp_path, "b.txt", "\ufeffgrün".encode())
    put(tmp_path, "c.txt", b"")
    put(tmp_path, "d.txt", b"ab\xff")
    result = read_all(tmp_path)
    assert [(row["id"], row["text"]) for row in result.rows] == [("a.py#0", "import os\r\n"), ("b.txt#0", "grün")]
    assert [(letter.shard, letter.reason) for letter in result.letters] == [("d.txt", "invalid_utf8")]


_TEXT = st.text("ab\né€😀", max_size=300).map(str.encode)


@given(_TEXT, st.integers(8, 100), st.integers(1, 90), st.sampled_from(["", ".gz", ".zst"]))
@settings(max_examples=150, deadline=None)
def test_documents_of_a_large_text_join_to_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, chunk_bytes: int, block_bytes: int, suffix: str
) -> None:
    folder = put(tmp_path_factory.mktemp("d"), f"a.txt{suffix}", COMPRESS[suffix](data))
    result = read_all(folder, chunk_bytes, block_bytes=block_bytes)
    assert "".join(result.texts).encode() == data and not result.letters
    assert [text.encode() for text in result.texts] == list(cut_documents(iter([data]), chunk_bytes))
    assert len(result.texts) == -(-len(data) // chunk_bytes)
    assert all(len(chunk) <= 1 for chunk in result.chunks)
    for text in result.texts[:-1]:
        assert text.endswith("\n") or "\n" not in text.encode()[-chunk_bytes:].decode("utf-8", "ignore")


def test_cut_is_behind_the_nearest_line_end() -> None:
    data = b"one\ntwo\nthree four five"
    assert cut(data, 10, 100) == 8
    assert cut(data, 8, 100) == 8
    assert cut(data, 20, 8) == 20
    euro = "aa€€€€".encode()
    assert [cut(euro, i, 100) for i in (3, 4, 5, 6)] == [2, 2, 5, 5]


def test_long_text_is_too_long(tmp_path: Path) -> None:
    result = read_all(put(tmp_path, "a.txt", b"x" * 3000), 1024, limit=1000)
    assert result.reasons == [(0, "too_long"), (1024, "too_long")] and len(result.texts) == 1


def test_corrupt_compressed_text_keeps_whole_documents(tmp_path: Path) -> None:
    data = b"".join(b"line %d\n" % i for i in range(50_000))
    packed = gzip.compress(data)
    result = read_all(put(tmp_path, "a.txt.gz", packed[: len(packed) // 2]), 65_536)
    assert len(result.texts) > 1 and data.startswith("".join(result.texts).encode())
    assert [letter.reason for letter in result.letters] == ["corrupt_shard"]


# ---------------------------------------------------------------------------------------------------- parquet


def _parquet(folder: Path, columns: dict, **options) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "a.parquet", **options)
    return folder


def test_parquet_rows_ids_and_nulls(tmp_path: Path) -> None:
    columns = {"text": ["one", None, "drei", ""], "url": ["u1", "u2", None, "u4"], "other": [1, 2, 3, 4]}
    folder = _parquet(tmp_path, columns)
    result = read_all(folder, id_column="url")
    assert [(row["id"], row["row"], row["text"]) for row in result.rows] == [
        ("u1", 0, "one"), ("a.parquet#2", 2, "drei"), ("u4", 3, "")]
    assert result.reasons == [(1, "null_text")] and result.bytes_read == 7


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.string_view(),
                                  pa.dictionary(pa.int32(), pa.string())])
def test_parquet_text_types(kind: pa.DataType, tmp_path: Path) -> None:
    folder = _parquet(tmp_path, {"text": pa.array(["grün", "b", "grün"]).cast(kind)})
    assert read_all(folder).texts == ["grün", "b", "grün"]


def test_parquet_invalid_utf8_and_length(tmp_path: Path) -> None:
    folder = _parquet(tmp_path, {"text": pa.array([b"ok", b"\xff", b"x" * 20]), "id": [1, 2, 3]})
    result = read_all(folder, limit=10, id_column="id")
    assert result.texts == ["ok"] and result.rows[0]["id"] == "1"
    assert result.reasons == [(1, "invalid_utf8"), (2, "too_long")]


def test_parquet_columns_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = _parquet(tmp_path, {"body": ["x"], "n": [1]})
    with pytest.raises(SourceError, match="no column 'text', only body, n"):
        read_all(folder)
    with pytest.raises(SourceError, match="'n' holds int64, not text"):
        read_all(folder, text_column="n")
    with pytest.raises(SourceError, match="no column 'url'"):
        read_all(folder, text_column="body", id_column="url")


@given(st.lists(st.text("abé", max_size=60), max_size=60), st.integers(1, 150), st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_parquet_chunks_follow_text_bytes_alone(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], chunk_bytes: int, group_rows: int
) -> None:
    """A row is in the chunk in which its text starts, whatever the row groups are."""
    folder = _parquet(tmp_path_factory.mktemp("d"), {"text": pa.array(texts, pa.string())}, row_group_size=group_rows)
    expected: list[list[str]] = [[]]
    start = 0
    for text in texts:
        while start >= len(expected) * chunk_bytes:
            expected.append([])
        expected[-1].append(text)
        start += len(text.encode())
    assert [[row["text"] for row in chunk] for chunk in read_all(folder, chunk_bytes).chunks] == expected


@pytest.mark.parametrize("kind", ["footer", "page", "empty", "not_parquet"])
def test_corrupt_parquet(kind: str, tmp_path: Path) -> None:
    texts = [f"{i:06d}" * 30 for i in range(2000)]
    _parquet(tmp_path, {"text": texts}, row_group_size=1000, use_dictionary=False, compression="zstd")
    data = (tmp_path / "a.parquet").read_bytes()
    second = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1).column(0).data_page_offset
    page = data[: second + 20] + b"\0" * 60 + data[second + 80 :]
    bad = {"footer": data[:-50], "page": page, "empty": b"", "not_parquet": b"hello" * 20}[kind]
    result = read_all(put(tmp_path, "a.parquet", bad))
    assert [letter.reason for letter in result.letters] == ["corrupt_shard"]
    assert result.texts == texts[: len(result.texts)]
    assert (len(result.texts) > 400) == (kind == "page")


# ---------------------------------------------------------------------------------------------------- storage


def test_s3_equals_local(tmp_path: Path, s3_uri: str) -> None:
    remote = Store(s3_uri).child("corpus")
    data = jsonl(*({"text": f"{i} " * 20} for i in range(100)), 5)
    put(tmp_path, "a.jsonl", data)
    put(tmp_path, "b.jsonl.gz", gzip.compress(data))
    put(tmp_path, "c.txt", data)
    wet = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b\r\n\r\n"
    put(tmp_path, "d.wet.gz", b"".join(gzip.compress(wet % (2000, b"%d " % i * 1000)) for i in range(9)))
    _parquet(tmp_path / "sub", {"text": [f"{i}" for i in range(1000)]})
    for entry in Store(str(tmp_path)).list():
        remote.write(entry.path, (tmp_path / entry.path).read_bytes())
    assert read_all(remote.uri, 2000, block_bytes=3000) == read_all(tmp_path, 2000)


def _piece(folder: Path, size: int) -> Piece:
    return Piece(0, str(folder), "a.jsonl", size)


def test_shards_that_changed_or_vanished_are_no_dead_letters(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", jsonl({"text": "a"}))
    source = SourceConfig(name="web", uris=(str(tmp_path),))
    with pytest.raises(SourceError, match="a.jsonl .*changed"):
        list(read_unit([_piece(tmp_path, 3)], source, 1024, LIMIT))
    with pytest.raises(SourceError, match="a.jsonl .*missing"):
        list(read_unit([_piece(tmp_path / "no", 3)], source, 1024, LIMIT))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.parquet", "a.warc", "a.wet.gz",
                                  "a.html", "x-pages-articles.xml.bz2"])
def test_storage_errors_are_raised(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails for good must not look like a corrupt shard."""
    put(tmp_path, name, b"whatever it is")

    def fail(*_: object) -> bytes:
        raise storage.TransientError("down")

    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.0,))
    monkeypatch.setattr(storage.RetryingFile, "_read_at", fail)
    with pytest.raises(StorageError, match="down"):
        read_all(tmp_path)


def test_every_configured_format_has_a_reader() -> None:
    formats = get_args(get_type_hints(SourceConfig)["format"])
    assert {*READERS, "auto"} == set(formats)
