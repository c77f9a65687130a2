"""The stream after a kill, a lost actor or a replay: nothing twice, nothing lost, and what a crash leaves."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import pyarrow as pa
import pytest

from pretrainer.data import stages
from pretrainer.data.decontamination.freeze import index_path
from pretrainer.data.dedup.in_order import InOrderDedup
from pretrainer.data.ledger import pages
from pretrainer.data.ledger.ledger import ChunkKey, Ledger, open_ledger
from pretrainer.data.ledger.segments import IndexPart, SegmentLog
from pretrainer.data.packing.packer import PackWindows
from pretrainer.data.pipeline import start_position
from pretrainer.data.plan import SourcePlan
from pretrainer.errors import StorageError, StreamError
from pretrainer.schema import TOKENIZED, ChunkReport, DeadLetter
from pretrainer.storage import Store
from tests.data.harness import curated, make_plan, no_held_out, packed, resumed, stream
from tests.data.stream_parts import TEXTS, documents_in


def objects(plan: SourcePlan) -> dict[str, bytes]:
    """Everything in the data folder of a run, but for the marks of processes that were killed."""
    data = Store(plan.data_uri)
    return {entry.path: data.read(entry.path) for entry in data.list() if not is_mark(entry.path)}


def is_mark(path: str) -> bool:
    """Whether an object only says that a process began to read a unit (`data.quarantine`)."""
    return "/try-" in path


class Killed(BaseException):
    """The process ends: no handler of the product may catch it."""


def kill_after(monkeypatch: pytest.MonkeyPatch, objects: int) -> None:
    """The process dies when it has created so many objects, before the next one."""
    left, create = [objects], Store.create

    def dying(store: Store, path: str, data: bytes) -> bool:
        left[0] -= not is_mark(path)
        if left[0] < 0:
            raise Killed
        return create(store, path, data)

    monkeypatch.setattr(Store, "create", dying)


def copy_of(plan: SourcePlan, folder: Path) -> SourcePlan:
    """The same plan before its first start: corpus and what is frozen in front of it alone."""
    data = Store(str(folder))
    for name in ("manifest.arrow", "tokenizer.model", index_path(plan.config.decontamination)):
        data.create(name, Store(plan.data_uri).read(name))
    return replace(plan, data_uri=data.uri)


@pytest.fixture
def compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SourcePlan:
    """Compressed files of several chunks each, two epochs; pages of two entries."""
    monkeypatch.setattr(pages, "PAGE_CHUNKS", 2)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a thousand objects are written, and no power fails
    texts = [TEXTS[n] for n in (*range(18), 3, 90)]
    sizes = {"seq_len": 8, "pack_window_tokens": 576, "chunk_bytes": 1024}
    return make_plan(tmp_path, texts, 10, compressed=True, max_epochs=2, **sizes)


def test_a_kill_at_any_commit_repeats_and_loses_nothing(
    compressed: SourcePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between any two of segment, token shard, record, window and page, then started again."""
    want = resumed(compressed)
    finished = objects(compressed)
    kinds = Counter(path.split("/")[-2] for path in finished if path.count("/") > 1)
    assert {"segments", "tokens", "chunks", "windows"} < {*kinds} and kinds["chunks"] == kinds["segments"] > 5
    assert min(kinds[f"{kind}_pages"] for kind in ("segment", "chunk", "window")) >= 2
    for number in range(sum(kinds.values())):
        plan = copy_of(compressed, tmp_path / f"killed-{number}")
        with monkeypatch.context() as patch:
            kill_after(patch, number)
            with pytest.raises(Killed):
                resumed(plan)
        open_ledger.cache_clear()  # another process
        assert resumed(plan) == want
        assert objects(plan) == finished


def test_resume_at_every_chunk_border(compressed: SourcePlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Committed chunks of a partly committed unit are read back; nothing before the border is curated again."""
    want = resumed(compressed)
    records = list(compressed.ledger.records())
    inside = [i for i, r in enumerate(records) if not r.last]
    assert len(records) > len(inside) > 3
    for count in range(len(records) + 1):
        plan = copy_of(compressed, tmp_path / f"cut-{count}")
        for path, data in objects(compressed).items():
            folder, name = path.split("/")[-2:] if "/" in path else ("", "")
            if folder in ("segments", "tokens", "chunks") and ChunkKey.parse(name) < (
                records[count].key if count < len(records) else ChunkKey(99, 0)
            ):
                Store(plan.data_uri).create(path, data)
        curated_again: list[int] = []
        curate = stages.curate_chunk
        monkeypatch.setattr(stages, "curate_chunk", lambda *a, c=curate, n=curated_again: (n.append(1), c(*a))[1])
        assert resumed(plan) == want
        assert len(curated_again) == len(records) - count
        monkeypatch.setattr(stages, "curate_chunk", curate)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.9])
def test_resume_from_pages_alone(
    compressed: SourcePlan, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in pages is not read singly: the single entries may be gone."""
    blocks = resumed(compressed)
    first = int(share * len(blocks))
    data = Store(compressed.data_uri)
    for kind in ("ledger/synthetic-c/chunk", "ledger/synthetic-c/segment", "packing/synthetic-p/window"):
        for entry in data.list(f"{kind}s")[: 2 * len(data.list(f"{kind}_pages"))]:
            data.delete(entry.path)
    open_ledger.cache_clear()
    assert resumed(compressed, first) == blocks[first:]


# The index is restored while committed chunks flow --------------------------------------------------------------------
def test_committed_chunks_do_not_wait_for_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path, TEXTS)
    curated(plan, range(5))
    raw = [row for p in range(7) for row in stages.read_chunks(pa.table({"position": [p]}), plan, 5)]
    go_on, behind = Event(), SegmentLog.behind

    def slow(*args: object) -> Iterator[tuple[ChunkKey, bytes]]:
        assert go_on.wait(60)
        return behind(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(SegmentLog, "behind", slow)
    dedup = InOrderDedup(plan, no_held_out(plan))
    assert [dedup(row).equals(row) for row in raw[:5]] == [True] * 5 and not dedup.restored.done()
    go_on.set()
    assert dedup(raw[5]).column("kind").to_pylist() == ["fresh"] and dedup.restored.result()


def test_errors_of_the_restore_are_raised_where_the_index_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path, TEXTS)
    curated(plan, range(2))
    raw = [row for p in range(3) for row in stages.read_chunks(pa.table({"position": [p]}), plan, 2)]

    def fail(*_: object) -> Iterator[IndexPart]:
        raise StorageError("down")

    monkeypatch.setattr(SegmentLog, "paged_index", fail)
    dedup = InOrderDedup(plan, no_held_out(plan))
    assert dedup(raw[0]).equals(raw[0])
    with pytest.raises(StorageError, match="down"):
        dedup(raw[2])


def test_an_actor_takes_over_from_one_that_went_on_deciding(tmp_path: Path) -> None:
    """The first was believed dead: it decided more chunks after the second had read the segments."""
    plan = make_plan(tmp_path, TEXTS)
    raw = [row for p in range(6) for row in stages.read_chunks(pa.table({"position": [p]}), plan, 0)]
    first, second = (InOrderDedup(plan, no_held_out(plan)) for _ in range(2))
    assert second.restored.result()
    answers = [first(row) for row in raw[:4]]
    assert second(raw[4]).equals(first(raw[4])) and second(raw[2]).equals(answers[2])


def test_resume_behind_the_last_closed_window_reads_the_open_one_alone(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS[:40], slot_sequences=1)
    blocks = stream(plan)
    last = plan.windows.read_all()[-1]
    (tmp_path / f"data/packing/synthetic-p/windows/{last.window:09d}.json").unlink()
    assert start_position(plan, last.first_sequence) == last.first[0] > 0
    rows = curated(plan, range(last.first[0], plan.positions), committed=plan.units)
    assert packed(PackWindows(plan, last.first_sequence), rows) == blocks[last.first_sequence :]


def test_stop_inside_a_unit_of_several_chunks_curates_that_unit_again(tmp_path: Path) -> None:
    shape = {"lines_per_file": 30, "compressed": True}
    one, plan = make_plan(tmp_path / "a", TEXTS, **shape), make_plan(tmp_path / "b", TEXTS, **shape)
    whole = stream(one)
    dedup = InOrderDedup(plan, no_held_out(plan))
    raw = [row for p in range(2) for row in stages.read_chunks(pa.table({"position": [p]}), plan, 0)]
    for row in raw[:-1]:
        stages.tokenize_chunk(dedup(row), plan)
    assert len(raw) >= 4 and raw[-1].column("chunk")[0].as_py() > 0
    assert plan.ledger.committed_units() == 1
    assert packed(PackWindows(plan, 0), curated(plan, range(plan.units), committed=1)) == whole


# What Ray may do to an in-order stage (seen on Ray 2.60 when a node is lost) ------------------------------------------
def test_replayed_chunks_get_their_first_answer(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    dedup = InOrderDedup(plan, no_held_out(plan))
    raw = [row for p in range(plan.units) for row in stages.read_chunks(pa.table({"position": [p]}), plan, 0)]
    first = [dedup(row) for row in raw]
    assert [dedup(row).equals(want) for row, want in zip(raw[3:9], first[3:9], strict=True)] == [True] * 6
    fresh = InOrderDedup(plan, no_held_out(plan))  # a new actor with empty state that sees only a few old chunks
    assert [fresh(raw[i]).equals(first[i]) for i in (7, 2, len(raw) - 1)] == [True] * 3


@pytest.mark.parametrize("compressed", [False, True])
def test_new_dedup_actor_goes_on_with_the_same_decisions(tmp_path: Path, compressed: bool) -> None:
    texts = TEXTS[:40] + TEXTS[:40]  # every second document has its first in another chunk
    one, other = (make_plan(tmp_path / name, texts, compressed=compressed) for name in "ab")
    want = curated(one, range(one.units))
    got = [row for p in range(other.units) for row in curated(other, [p])]  # each call makes a new actor
    assert [row.column("docs") for row in got] == [row.column("docs") for row in want]
    assert sum(r.kept for r in other.ledger.records()) == 40


def test_lost_segment_is_decided_again_alike(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS[:40])
    rows = curated(plan, range(plan.units))
    (tmp_path / "data/ledger/synthetic-c/segments/000000003-00000.arrow").unlink()
    again = curated(plan, range(3, plan.units))
    assert all(row.equals(want) for row, want in zip(again, rows[3:], strict=True))


def test_gap_before_the_dedup_stage_stops(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    with pytest.raises(StreamError, match="was expected"):
        curated(plan, [0, 2])


def test_packer_answers_replays_and_new_actors_alike(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    rows = curated(plan, range(plan.units))
    packer = PackWindows(plan, 0)
    by_row = [packed(packer, [row]) for row in rows]
    assert [packed(packer, [rows[i]]) for i in (4, 3, 5)] == [by_row[i] for i in (4, 3, 5)]
    fresh = PackWindows(plan, 0)
    assert [packed(fresh, [rows[i]]) for i in (9, 2, 6)] == [by_row[i] for i in (9, 2, 6)]


@pytest.mark.parametrize("epoch", [0, 1])
def test_new_packer_inside_an_open_window_reads_what_it_has_not_seen(tmp_path: Path, epoch: int) -> None:
    plan = make_plan(tmp_path / "a", TEXTS[:40], max_epochs=2)
    want = stream(plan)
    other = make_plan(tmp_path / "b", TEXTS[:40], max_epochs=2)
    rows = curated(other, range(other.positions))
    cut = epoch * other.units + 2
    assert not any(w.first[0] == cut for w in plan.windows.read_all())
    got = packed(PackWindows(other, 0), rows[:cut]) + packed(PackWindows(other, 0), rows[cut:])
    assert got == want


def test_packer_holds_no_more_than_its_open_window(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    packer, held = PackWindows(plan, 0), []
    for row in curated(plan, range(plan.units)):
        packed(packer, [row])
        open_at = packer.open_at
        assert all(at >= open_at for at in packer.chunks)
        held.append(len(packer.rows))
    assert len(packer.windows) > 3 and max(held) <= 1 and held[-1] == 0


def test_two_chunks_in_one_call_stop(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    rows = curated(plan, [0, 1])
    with pytest.raises(StreamError, match="instead of 1"):
        stages.one_chunk(pa.concat_tables(rows))


# Durable records ------------------------------------------------------------------------------------------------------
def test_changed_token_shard_is_refused(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    stream(plan)
    shard = next((tmp_path / "data/ledger/synthetic-c/tokens").iterdir())
    shard.write_bytes(shard.read_bytes().replace(b"\x01", b"\x02", 1))
    with pytest.raises(StreamError, match="does not match"):
        plan.ledger.read_tokens(ChunkKey.parse(shard.name))


def test_records_are_written_in_the_order_that_a_crash_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segment, token shard, record; and a window before any of its blocks leaves the packer."""
    plan, names = make_plan(tmp_path, TEXTS[:20]), []
    create = Store.create
    monkeypatch.setattr(Store, "create", lambda self, path, data: (names.append(path), create(self, path, data))[1])
    rows = curated(plan, range(plan.units))
    folders = [name.split("/")[0] for name in names if not is_mark(name)]
    assert folders == ["segments", "tokens", "chunks"] * len(rows)
    monkeypatch.undo()
    monkeypatch.setattr(Store, "create", lambda *_args: (_ for _ in ()).throw(StorageError("full")))
    packer = PackWindows(plan, 0)
    with pytest.raises(StorageError, match="full"):
        assert not packed(packer, rows)


def test_window_behind_a_gap_does_not_count(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    blocks = stream(plan)
    (tmp_path / "data/packing/synthetic-p/windows/000000001.json").unlink()
    assert [w.window for w in plan.windows.read_all()] == [0]
    assert stream(plan) == blocks


def test_a_record_is_never_overwritten_with_other_bytes(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    rows = curated(plan, [0])
    fresh = next(iter(stages.read_chunks(pa.table({"position": [0]}), plan, 0)))
    assert stages.tokenize_chunk(InOrderDedup(plan, no_held_out(plan))(fresh), plan).equals(
        rows[0]
    )  # the same again: fine
    other = make_plan(tmp_path / "other", TEXTS[::-1])
    raw = next(iter(stages.read_chunks(pa.table({"position": [0]}), other, 0)))
    changed = InOrderDedup(other, no_held_out(other))(raw)
    with pytest.raises(StorageError, match="other bytes"):
        stages.tokenize_chunk(changed, plan)


@pytest.mark.parametrize("folder", ["tokens", "chunks", "dead_letters"])
def test_no_object_of_the_ledger_is_replaced(tmp_path: Path, folder: str) -> None:
    ledger = Ledger(Store(str(tmp_path)))
    tokenized = pa.table([["a"], [0], [0], [1], [[70]]], schema=TOKENIZED)
    report = ChunkReport(read=2, dead_letters=[DeadLetter("s", "a.jsonl", 1, "bad_json", "")])
    ledger.commit(ChunkKey(0, 0), True, tokenized, report)
    [path] = (tmp_path / folder).iterdir()
    path.write_bytes(b"of another code version")
    with pytest.raises(StorageError, match="other bytes"):
        ledger.commit(ChunkKey(0, 0), True, tokenized, report)
    assert path.read_bytes() == b"of another code version"


def test_only_the_contiguous_prefix_counts(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    stream(plan)
    gone = tmp_path / "data/ledger/synthetic-c/chunks/000000003-00000-e.json"
    gone.unlink()
    assert plan.ledger.committed_units() == 3
    assert [r.unit for r in plan.ledger.records()] == [0, 1, 2]


# Bad input ------------------------------------------------------------------------------------------------------------
def test_bad_records_become_dead_letters_and_are_counted(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, TEXTS)
    broken = sorted((tmp_path / "corpus").iterdir())[2]
    broken.write_bytes(broken.read_bytes().replace(b'{"text"', b'{~text"', 1))
    blocks = stream(plan)
    records = list(plan.ledger.records())
    assert sum(r.dead_letters for r in records) == 1
    assert documents_in(blocks) == 117
    letters = [p.read_text() for p in (tmp_path / "data/ledger/synthetic-c/dead_letters").iterdir()]
    assert len(letters) == 1 and '"reason": "bad_json"' in letters[0] and broken.name in letters[0]
