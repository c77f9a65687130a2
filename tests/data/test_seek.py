"""Reading goes on in the middle of a unit: for every cut, the chunks behind it are those of the whole read."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import SourceConfig
from pretrainer.data.readers import jsonl as readers_jsonl
from pretrainer.data.readers import parquet as readers_parquet
from pretrainer.data.readers.formats import read_unit
from pretrainer.data.readers.reading import BEGINNING, Resume
from pretrainer.data.readers.units import Piece
from pretrainer.storage import RetryingFile
from tests.data.compress import COMPRESS

LIMIT = 400
Chunk = tuple[list[dict], dict, bool]


def members(data: bytes, suffix: str, size: int, padding: bytes = b"") -> bytes:
    """Compressed in members of `size` decompressed bytes each, as bgzip and pbzip2 do."""
    return padding.join(COMPRESS[suffix](data[i : i + size]) for i in range(0, len(data) or 1, size))


def lines(count: int) -> bytes:
    """JSON lines with blank ones, bad ones and one that is too long between them."""
    odd = {5: b"", 11: b"{", 17: json.dumps({"text": "x" * 3 * LIMIT}).encode(), 18: b"  "}
    return b"".join(
        odd.get(i, json.dumps({"text": f"{i} " * (i % 40), "id": f"id{i}"}).encode()) + b"\n" for i in range(count)
    )


def pieces_of(folder: Path, files: dict[str, bytes]) -> list[Piece]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [Piece(i, str(folder), name, len(data)) for i, (name, data) in enumerate(files.items())]


def chunks(pieces: list[Piece], chunk_bytes: int, first: int = 0, resume: Resume = BEGINNING) -> list[Chunk]:
    source = SourceConfig(name="web", uris=("unused",), id_column="id" if "jsonl" in pieces[0].path else None)
    found = read_unit(pieces, source, chunk_bytes, LIMIT, 1000, first, resume)
    return [(docs.to_pylist(), asdict(report), last) for docs, report, last in found]


def check_all_cuts(pieces: list[Piece], chunk_bytes: int, at_least: int = 3) -> None:
    whole = chunks(pieces, chunk_bytes)
    assert len(whole) >= at_least
    for first in range(1, len(whole)):
        place = json.loads(json.dumps(whole[first - 1][1]["next"]))  # as the ledger keeps it
        assert chunks(pieces, chunk_bytes, first, Resume(**place)) == whole[first:]
    assert whole[-1][1]["next"] is None


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".bz2", ".xz"])
@pytest.mark.parametrize("kind", ["one", "many", "padded", "truncated", "flipped", "garbage"])
def test_every_cut_of_compressed_lines(suffix: str, kind: str, tmp_path: Path) -> None:
    data = lines(400)
    packed = members(data, suffix, len(data) if kind == "one" else 3001)
    if kind == "padded" and suffix != ".zst":
        packed = members(data, suffix, 3001, padding=b"\0" * 512)
    cut = len(packed) * 4 // 5
    packed = {
        "truncated": packed[:cut],
        "flipped": packed[:cut] + bytes(byte ^ 0xFF for byte in packed[cut : cut + 40]) + packed[cut + 40 :],
        "garbage": packed + b"garbage",
    }.get(kind, packed)
    check_all_cuts(pieces_of(tmp_path, {f"a.jsonl{suffix}": packed}), 1500)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_what_is_lost_at_a_damaged_place_does_not_depend_on_the_start(suffix: str, tmp_path: Path) -> None:
    """Members longer than a feed, with text that hardly compresses: a decompressor drops what the failing call held."""
    random = Random(0)
    data = b"".join(json.dumps({"text": f"{random.getrandbits(1200):x}"}).encode() + b"\n" for _ in range(150))
    packed = members(data, suffix, 9001)
    for number in range(6):
        at = len(packed) * (50 + 7 * number) // 100
        damaged = packed[:at] + bytes(byte ^ 0xFF for byte in packed[at : at + 8]) + packed[at + 8 :]
        check_all_cuts(pieces_of(tmp_path / str(number), {f"a.jsonl{suffix}": damaged}), 3000)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("is_whole", [True, False])
def test_every_cut_of_compressed_text(suffix: str, is_whole: bool, tmp_path: Path) -> None:
    """A text document starts at a nominal place of its own, not where its bytes are."""
    data = "".join(f"zeile {i} é {'x' * (i % 50)}\n" for i in range(400)).encode()
    packed = members(data, suffix, 2500)
    packed = packed if is_whole else packed[: len(packed) * 3 // 4]
    check_all_cuts(pieces_of(tmp_path, {f"a.txt{suffix}": packed}), 300)


@pytest.mark.parametrize("rows", [7, 100, 1000])
@pytest.mark.parametrize("kind", ["whole", "corrupt page"])
def test_every_cut_of_parquet(rows: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers_parquet, "PARQUET_BATCH_ROWS", 16)
    texts = [None if i % 13 == 5 else f"{i:06d} " * (i % 9) for i in range(600)]
    sink = pa.BufferOutputStream()
    table = pa.table({"text": pa.array(texts, pa.string())})
    pq.write_table(table, sink, row_group_size=rows, use_dictionary=False, compression="zstd")
    data = sink.getvalue().to_pybytes()
    if kind == "corrupt page":
        metadata = pq.ParquetFile(pa.BufferReader(data)).metadata
        page = metadata.row_group(metadata.num_row_groups * 4 // 5).column(0).data_page_offset
        data = data[: page + 20] + b"\0" * 30 + data[page + 50 :]
    check_all_cuts(pieces_of(tmp_path, {"a.parquet": data}), 900, at_least=1 if kind != "whole" else 3)


def test_every_cut_of_a_unit_of_several_shards(tmp_path: Path) -> None:
    """Small shards share a unit; the pieces before the place are not opened."""
    suffixes = enumerate([".gz", "", ".zst", ".xz"])
    files = {f"{i}.jsonl{suffix}": COMPRESS[suffix](lines(60 + i)) for i, suffix in suffixes}
    files["z.txt"] = b"plain\n" * 20
    pieces = pieces_of(tmp_path, files)
    check_all_cuts(pieces, 1100)
    whole = chunks(pieces, 1100)
    assert len(whole) == -(-sum(report["bytes_read"] for _, report, _ in whole) // 1100)
    later = next(i for i, (_, report, _) in enumerate(whole) if report["next"]["piece"] == 2)
    (tmp_path / "0.jsonl.gz").unlink()
    assert chunks(pieces, 1100, later + 1, Resume(**whole[later][1]["next"])) == whole[later + 1 :]


@given(
    st.lists(st.integers(0, 60), max_size=20), st.integers(1, 300), st.integers(1, 200),
    st.sampled_from([".gz", ".zst", ".bz2", ".xz"]),
)
@settings(max_examples=120, deadline=None)
def test_any_lines_members_and_chunks(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], member: int, chunk_bytes: int, suffix: str
) -> None:
    data = b"".join((json.dumps({"text": "y" * n}).encode() if n else b"") + b"\n" for n in sizes)
    pieces = pieces_of(tmp_path_factory.mktemp("d"), {f"a.jsonl{suffix}": members(data, suffix, member)})
    check_all_cuts(pieces, chunk_bytes, at_least=1)


def test_a_seek_reads_from_the_member_on_and_parses_nothing_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = lines(2000)
    many = pieces_of(tmp_path, {"many.jsonl.gz": members(data, ".gz", 4000)})
    one = pieces_of(tmp_path, {"one.jsonl.gz": gzip.compress(data)})
    first_bytes: list[int] = []
    parsed: list[int] = []
    blocks, parse = RetryingFile.blocks, readers_jsonl._parse_line

    def seen_blocks(self: RetryingFile, start: int = 0, *rest: object) -> Iterator[bytes]:
        first_bytes.append(start)
        return blocks(self, start, *rest)  # type: ignore[arg-type]

    def seen_parse(*args: object) -> Iterator[object]:
        parsed.append(1)
        return parse(*args)  # type: ignore[arg-type]

    last = len(chunks(many, 4096)) - 1
    resumes = [Resume(**chunks(pieces, 4096)[last - 1][1]["next"]) for pieces in (many, one)]
    monkeypatch.setattr(RetryingFile, "blocks", seen_blocks)
    monkeypatch.setattr(readers_jsonl, "_parse_line", seen_parse)
    for pieces, resume in zip((many, one), resumes, strict=True):
        chunks(pieces, 4096, last, resume)
    assert first_bytes[0] > 0.9 * many[0].size and first_bytes[1] == 0
    assert len(parsed) < 2 * 100  # of 2,000 lines each
