"""Pages of records, segments and windows: the answers of single entries, fewer requests, nothing lost at a crash."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pretrainer import storage
from pretrainer.config import DataConfig, DedupConfig, SourceConfig
from pretrainer.data.dedup.dedup import Sketches
from pretrainer.data.dedup.in_order import InOrderDedup
from pretrainer.data.ledger import pages
from pretrainer.data.ledger.ledger import ChunkKey, ChunkRecord, Ledger
from pretrainer.data.ledger.pages import START, ChunkEnd
from pretrainer.data.ledger.records import RecordLog, RecordPager
from pretrainer.data.ledger.segments import DECISIONS, SegmentPager, join_page, join_segment, split_page
from pretrainer.data.ledger.windows import Window, WindowLog
from pretrainer.data.packing.shuffle_quality import ShuffleQuality
from pretrainer.data.pipeline import start_position
from pretrainer.data.plan import SourcePlan
from pretrainer.schema import from_ipc, to_ipc
from pretrainer.storage import Store
from pretrainer.storage_backend import Entry
from pretrainer.storage_local import LocalBackend
from tests.data.harness import no_held_out


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_CHUNKS", 4)


def record(unit: int, chunk: int = 0, last: bool = True) -> ChunkRecord:
    return ChunkRecord(unit, chunk, last, 9, 7, 900, 700, 200 + unit, f"digest{unit}-{chunk}", {"short": 2}, 0)


def some_records() -> list[ChunkRecord]:
    """25 records of 15 units; each third unit has three chunks."""
    return [record(u, c, c == n - 1) for u in range(15) for n in [3 if u % 3 == 0 else 1] for c in range(n)]


def names(store: Store, folder: str) -> list[str]:
    return [entry.path.rsplit("/", 1)[-1] for entry in store.list(folder)]


def written(store: Store, records: list[ChunkRecord]) -> RecordLog:
    """A log with these records, passed in order by a pager that was new at the start."""
    log = RecordLog(store)
    pager = RecordPager(log)
    for each in records:
        log.create(each)
        pager.passed(each.key, each.last)
    return log


# records --------------------------------------------------------------------------------------------------------------
def test_pages_hold_consecutive_records_and_tell_their_range(tmp_path: Path, small_pages: None) -> None:
    store, records = Store(str(tmp_path)), some_records()
    written(store, records)
    ends = [ChunkEnd(r.key, r.last).name for r in records]
    want = [f"{records[i].key.name}_{ends[i + 3]}.jsonl" for i in range(0, 24, 4)]
    assert names(store, "chunk_pages") == want and len(names(store, "chunks")) == 25
    assert store.read(f"chunk_pages/{want[1]}") == b"".join(r.to_bytes() + b"\n" for r in records[4:8])


def test_records_through_pages_are_the_single_ones(tmp_path: Path, small_pages: None) -> None:
    store, records = Store(str(tmp_path)), some_records()
    written(store, records)
    for entry in store.list("chunks")[:24]:
        store.delete(entry.path)  # so that an answer for them can only come from a page
    ledger = Ledger(store)
    assert list(ledger.records()) == records
    assert [ledger.record(r.key) for r in records] == records
    assert ledger.record(ChunkKey(15, 0)) is None
    assert ledger.committed() == (15, 0)


@pytest.mark.parametrize("count", range(26))
def test_committed_is_the_contiguous_prefix(count: int, tmp_path: Path, small_pages: None) -> None:
    store, records = Store(str(tmp_path)), some_records()
    written(store, records[:count])
    for each in records[count + 1 :]:
        RecordLog(store).create(each)  # chunks beyond a gap do not count
    units, chunks = Ledger(store).committed()
    done = [r for r in records[:count] if r.last]
    assert (units, chunks) == (len(done), count - (records.index(done[-1]) + 1 if done else 0))
    assert list(Ledger(store).records()) == records[:count]


@pytest.mark.parametrize("lost", range(6))
def test_a_missing_page_is_written_again_by_the_next_pass(lost: int, tmp_path: Path, small_pages: None) -> None:
    """After a crash, or where a page in the middle is gone; the pager may begin anywhere in the stream."""
    store, records = Store(str(tmp_path)), some_records()
    written(store, records)
    before = {entry.path: store.read(entry.path) for entry in store.list()}
    store.delete(store.list("chunk_pages")[lost].path)
    assert list(RecordLog(store)) == records and RecordLog(store).newest() == ChunkEnd(ChunkKey(14, 0), True)
    RecordPager(RecordLog(store)).passed(records[20].key, records[20].last)
    assert {entry.path: store.read(entry.path) for entry in store.list()} == before


def test_a_pager_that_missed_chunks_looks_them_up(tmp_path: Path, small_pages: None) -> None:
    store, records = Store(str(tmp_path)), some_records()
    log = written(store, records[:6])
    pager = RecordPager(log)
    pager.passed(records[5].key, records[5].last)
    for each in records[6:]:
        log.create(each)
    for which in (7, 3, 19):  # replayed, and beyond the next
        pager.passed(records[which].key, records[which].last)
    assert len(names(store, "chunk_pages")) == 6


def test_pages_of_another_size_go_on_where_the_old_ones_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, records = Store(str(tmp_path)), some_records()
    monkeypatch.setattr(pages, "PAGE_CHUNKS", 4)
    written(store, records[:9])
    monkeypatch.setattr(pages, "PAGE_CHUNKS", 7)
    log = written(store, records)
    assert list(log) == records and len(log.pages.refresh()) == 4
    assert [log.get(r.key) for r in records] == records


def test_a_process_that_outlives_pages_learns_of_them(tmp_path: Path, small_pages: None) -> None:
    store, records = Store(str(tmp_path)), some_records()
    reader = RecordLog(store)
    assert reader.get(records[0].key) is None and reader.pages.spans == []
    written(store, records)
    for each in records[:8]:
        assert reader.get(each.key) == each
    assert len(reader.pages.spans) == 6


def test_a_page_that_overlaps_does_not_count(tmp_path: Path, small_pages: None) -> None:
    store, records = Store(str(tmp_path)), some_records()
    written(store, records)
    end = ChunkEnd(records[6].key, records[6].last).name
    store.create(f"chunk_pages/{records[2].key.name}_{end}.jsonl", b"wrong")
    assert list(RecordLog(store)) == records


def test_start_sorts_before_every_chunk() -> None:
    assert START.name < ChunkEnd(ChunkKey(0, 0), False).name and ChunkKey(0, 0).follows(*START)


# segments -------------------------------------------------------------------------------------------------------------
def segment(key: ChunkKey, documents: int, permutations: int = 6) -> bytes:
    random = np.random.default_rng(key.unit * 100 + key.chunk)
    kept = random.random(documents) < 0.7
    decisions = DECISIONS.empty_table() if documents == 0 else _decisions(kept)
    n = int(kept.sum())
    hashes = random.integers(0, 2**63, (n, 2)).astype(np.uint64)
    values = random.integers(0, 2**31, (n, permutations)).astype(np.uint32)
    sketches = Sketches(hashes, values, random.integers(0, 99, n).astype(np.int32), "test")
    return to_ipc(join_segment(decisions, sketches, {"last": True, "read": documents, "dead": key.unit % 2}))


def _decisions(kept: np.ndarray) -> pa.Table:
    columns = [kept, [None if k else "duplicate_exact" for k in kept], np.arange(len(kept)), np.ones(len(kept))]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, DECISIONS, strict=True)], schema=DECISIONS)


@pytest.mark.parametrize("permutations", [0, 6])
def test_a_page_of_segments_gives_them_back(permutations: int, tmp_path: Path, small_pages: None) -> None:
    ledger = Ledger(Store(str(tmp_path)))
    keys = [ChunkKey(u, 0) for u in range(11)]
    pager = SegmentPager(ledger.segment_log)
    for key in keys:
        data = segment(key, key.unit * 3 % 8, permutations)
        ledger.segment_log.create(key, data)
        pager.add(key, True, data)
    singles = {key: ledger.read_segment(key) for key in keys}
    assert len(names(ledger.root, "segment_pages")) == 2
    for entry in ledger.root.list("segments")[:8]:
        ledger.root.delete(entry.path)
    found = dict(Ledger(ledger.root).segments())
    assert list(found) == keys
    assert all(found[key].equals(singles[key], check_metadata=True) for key in keys)
    parts = list(ledger.segment_log.paged_index())
    assert [info.key for part in parts for info in part.segments] == keys[:8]
    assert [info.dead for part in parts for info in part.segments] == [0, 1] * 4
    assert sum(len(part.positions) for part in parts) == sum(int(np.sum(singles[k].column("kept"))) for k in keys[:8])


def test_a_page_of_segments_ends_at_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(Store(str(tmp_path)))
    size = len(segment(ChunkKey(0, 0), 50))
    monkeypatch.setattr(pages, "PAGE_BYTES", 2 * size + size // 2)
    pager = SegmentPager(ledger.segment_log)
    for unit in range(7):
        pager.add(ChunkKey(unit, 0), True, segment(ChunkKey(unit, 0), 50))
    assert [span.first.unit for span in ledger.segment_log.pages.refresh()] == [0, 3]


def test_bytes_per_document_are_what_the_docstring_says() -> None:
    """4 P + 28 bytes of index entry per kept document and 16 to 21 of decision per document, in large chunks."""
    key = ChunkKey(0, 0)
    data = segment(key, 5000, permutations=256)
    kept = int(np.sum(from_ipc(data).column("kept")))
    page = join_page([(key, from_ipc(data))])
    assert 16 <= (len(page) - 1052 * kept) / 5000 <= 22
    assert [k for k, _ in split_page(page)] == [key]


# windows --------------------------------------------------------------------------------------------------------------
def window(number: int) -> Window:
    """Windows of 3 chunks over units of 2 chunks, with 5 to 7 sequences each."""
    first, after = divmod(3 * number, 2), divmod(3 * number + 3, 2)
    start = sum(5 + n % 3 for n in range(number))
    values = dict(window=number, epoch=0, first=first, after=after, first_sequence=start, sequences=5 + number % 3)
    counts = dict.fromkeys(("tokens", "padded", "discarded", "split", "documents"), 1)
    return Window(**values, **counts, shuffle=ShuffleQuality(5, 4))


@pytest.fixture
def windows(tmp_path: Path, small_pages: None) -> WindowLog:
    log = WindowLog(Store(str(tmp_path)))
    for number in range(19):
        log.write(window(number))
    return log


@pytest.mark.parametrize("is_fresh", [True, False])
def test_window_of_every_sequence_and_chunk(windows: WindowLog, is_fresh: bool) -> None:
    all_windows = [window(n) for n in range(19)]
    assert len(names(windows.root, "window_pages")) == 4
    if is_fresh:
        for entry in windows.root.list("windows")[:16]:
            windows.root.delete(entry.path)
        windows = WindowLog(windows.root)
    assert windows.read_all() == all_windows and len(windows) == 19 and windows.newest() == all_windows[-1]
    assert [windows.get(n) for n in range(19)] == all_windows
    for sequence in range(all_windows[-1].end_sequence):
        want = next(w for w in all_windows if w.first_sequence <= sequence < w.end_sequence)
        assert windows.of_sequence(sequence) == want
    for place in range(3 * 19):
        want = next(w for w in all_windows if w.first <= divmod(place, 2) < w.after)
        assert windows.of_chunk(divmod(place, 2)) == want
    assert windows.of_sequence(all_windows[-1].end_sequence) is windows.of_chunk(all_windows[-1].after) is None


def test_an_empty_window_log(tmp_path: Path) -> None:
    log = WindowLog(Store(str(tmp_path)))
    assert log.newest() is log.of_sequence(0) is log.of_chunk((0, 0)) is None and log.read_all() == []


@pytest.mark.parametrize("lost", range(4))
def test_a_missing_page_of_windows(lost: int, windows: WindowLog) -> None:
    root = windows.root
    before = {entry.path: root.read(entry.path) for entry in root.list()}
    root.delete(root.list("window_pages")[lost].path)
    again = WindowLog(root)
    assert again.read_all() == [window(n) for n in range(19)]
    again.write_pages()
    assert {entry.path: root.read(entry.path) for entry in root.list()} == before


def test_windows_behind_a_gap_do_not_count(windows: WindowLog) -> None:
    windows.root.delete("windows/000000017.json")
    assert len(WindowLog(windows.root)) == 17 == len(WindowLog(windows.root).read_all())


def test_a_window_log_holds_two_pages_of_single_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_CHUNKS", 4)
    log = WindowLog(Store(str(tmp_path)))
    for number in range(40):
        log.write(window(number))
        assert len(log._single) <= 8


# operation counts -----------------------------------------------------------------------------------------------------
CHUNKS = 1_000_000


@dataclass
class Synthetic(LocalBackend):
    """A ledger of one-chunk units and windows of one chunk each, 3 sequences: objects by arithmetic, requests counted.

    `chunks` of CHUNKS are committed; pages there are of all whole thousands.
    """

    chunks: int
    requests: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    def entries(self, folder: str, recursive: bool, after: str = "") -> Iterator[Entry]:
        kind = folder.rsplit("/", 1)[-1]
        found = [name for name in self.names(kind, after) if name > after]
        self.requests[f"LIST {kind}"] += max(1, math.ceil(len(found) / 1000))
        return iter([Entry(name, 1, "") for name in found])

    def names(self, kind: str, after: str) -> Iterator[str]:
        first = int(after.split("-")[0].split(".")[0] or 0) if after else 0
        whole = range(0, self.chunks - 999, 1000)
        if kind == "chunks":
            yield from (f"{n:09d}-00000-e.json" for n in range(first, self.chunks))
        if kind == "segments":
            yield from (f"{n:09d}-00000.arrow" for n in range(first, self.chunks))
        if kind == "windows":
            yield from (f"{n:09d}.json" for n in range(first, self.chunks))
        if kind == "chunk_pages":
            yield from (f"{n:09d}-00000_{n + 999:09d}-00000-e.jsonl" for n in whole)
        if kind == "segment_pages":
            yield from (f"{n:09d}-00000_{n + 999:09d}-00000-e.arrow" for n in whole)
        if kind == "window_pages":
            yield from (f"{self.bound(n)}_{self.bound(n + 1000)}.jsonl" for n in whole)

    def bound(self, n: int) -> str:
        return f"{n:09d}-{3 * n:012d}-{n:010d}-{0:05d}"

    def content(self, path: str) -> bytes:
        kind, name = path.rsplit("/", 2)[-2:]
        n = int(name.split("-")[0].split(".")[0])
        numbers = range(n, n + 1000) if "pages" in kind else range(n, n + 1)
        if kind == "segment_pages":  # each first chunk of a page has one document, the others none
            infos = [[i, 0, int(i == n), int(i == n), True, 1, 0] for i in numbers]
            entry = Sketches(np.array([[n, n]], np.uint64), np.zeros((1, 0), np.uint32), np.ones(1, np.int32),
                             "exact-only").to_table().append_column("position", pa.array([n << 35]))
            meta = {**entry.schema.metadata, b"segments": json.dumps(infos).encode()}
            return to_ipc(entry.replace_schema_metadata(meta)) + to_ipc(DECISIONS.empty_table())
        if "window" in kind:
            return b"".join(replace(window(0), window=i, first=(i, 0), after=(i + 1, 0), first_sequence=3 * i,
                                    sequences=3).to_bytes() + b"\n" for i in numbers)
        return b"".join(record(i).to_bytes() + b"\n" for i in numbers)

    def open(self, path: str) -> Content:
        data = self.content(path)
        self.requests[f"GET {path.rsplit('/', 2)[-2]}"] += 1
        self.bytes += len(data)
        return Content(data)


@dataclass
class Content:
    data: bytes

    def size(self) -> int:
        return len(self.data)

    def read_at(self, nbytes: int, offset: int) -> bytes:
        return self.data[offset : offset + nbytes]

    def close(self) -> None:
        return None


@pytest.mark.parametrize("committed", [100_000, 100_700, 900_000, 900_700])
def test_requests_of_a_resume_do_not_grow_with_the_position(committed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first committed chunk flows: one page each, or single entries by binary search behind the last."""
    backend = Synthetic(committed)
    monkeypatch.setattr(storage, "_backend", lambda *_: backend)
    source = SourceConfig(name="s", uris=("unused",))
    config = DataConfig(sources=(source,), slot_sequences=8)
    plan = SourcePlan(0, f"/synthetic/{committed}", config, "c", "p", CHUNKS)
    block = (3 * committed - 300) // 8  # trained up to 100 chunks before the last committed one
    position = start_position(plan, block)
    assert position == 8 * block // 3
    assert plan.ledger.committed() == (committed, 0)
    assert plan.ledger.record(ChunkKey(position, 0)) == record(position)
    assert plan.ledger.record(ChunkKey(position + 1, 0)) == record(position + 1)
    is_paged = committed % 1000 == 0
    print(f"{committed:,} committed: {dict(sorted(backend.requests.items()))}, {backend.bytes:,} bytes")
    lists = {"LIST chunk_pages": 1, "LIST chunks": 1, "LIST window_pages": 1, "LIST windows": 1}
    gets = {"GET chunk_pages": 1, "GET window_pages": 1} if is_paged else {"GET chunks": 2, "GET windows": 9}
    assert backend.requests == lists | gets
    assert backend.bytes < 700_000


@pytest.mark.parametrize("committed", [10_000, 90_000])
def test_requests_of_an_index_restore_are_the_pages_before(committed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """O(position) bytes, off the critical path; the number of requests is a thousandth of the chunks."""
    backend = Synthetic(committed)
    monkeypatch.setattr(storage, "_backend", lambda *_: backend)
    config = DataConfig(sources=(SourceConfig(name="s", uris=("unused",)),), dedup=DedupConfig(near=False))
    plan = SourcePlan(0, f"/synthetic/{committed}/restore", config, "c", "p", CHUNKS)
    dedup = InOrderDedup(plan, no_held_out(plan))
    assert dedup.restored.result(timeout=60)
    assert dedup.progress.newest == ChunkKey(committed - 1, 0) and dedup.progress.read == committed
    assert len(dedup.index) == committed // 1000
    assert backend.requests == {
        "LIST chunk_pages": 1, "LIST chunks": 1,
        "LIST segment_pages": 1, "LIST segments": 1, "GET segment_pages": committed // 1000,
    }


def test_no_index_is_restored_where_every_chunk_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Synthetic(5000)
    monkeypatch.setattr(storage, "_backend", lambda *_: backend)
    config = DataConfig(sources=(SourceConfig(name="s", uris=("unused",)),), dedup=DedupConfig(near=False))
    plan = SourcePlan(0, "/synthetic/whole", config, "c", "p", 5000)
    assert not InOrderDedup(plan, no_held_out(plan)).restored.result(timeout=60)
    assert backend.requests == {"LIST chunk_pages": 1, "LIST chunks": 1}
