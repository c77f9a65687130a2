"""WARC: borders of chunks, resume, seeks, reading ahead, and any damage."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrainer.config import ExtractConfig, SourceConfig
from pretrainer.data.readers import extract
from pretrainer.data.readers.decompress import CorruptStreamError
from pretrainer.data.readers.extract import BATCH_PAGES, Verdict
from pretrainer.data.readers.reading import BEGINNING, Reading, Resume
from pretrainer.data.readers.warc import read_warc
from pretrainer.data.readers.window import Window
from pretrainer.storage import RetryingFile
from tests.data.compress import COMPRESS
from tests.data.warc_records import (
    INFO,
    LIMIT,
    METADATA,
    REQUEST,
    REVISIT,
    chunks,
    pieces_of,
    read,
    response,
    wet,
)

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
